"""Waiting that a cancellation does not cut short."""

from __future__ import annotations

import asyncio

import pytest

from chutes.util.waiting import to_the_end


async def test_a_caller_that_is_cancelled_still_gets_the_result():
    go = asyncio.Event()

    async def work() -> int:
        await go.wait()
        return 7

    waiting = asyncio.create_task(to_the_end(work()))
    for _ in range(2):
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        assert not waiting.done()
    go.set()
    assert await waiting == (7, True)


async def test_a_failure_is_passed_on():
    async def work() -> int:
        raise LookupError("no such thing")

    with pytest.raises(LookupError):
        await to_the_end(work())
