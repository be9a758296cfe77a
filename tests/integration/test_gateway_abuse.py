"""`benchmarks.gateway_abuse` on a small scale, and half a minute of `benchmarks.gateway_soak`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from benchmarks.gateway_abuse import CASES
from benchmarks.gateway_attack import Attack, Finding
from benchmarks.gateway_soak import Soak


@pytest.fixture(scope="module")
def attack() -> Iterator[Attack]:
    made = Attack(scale=0.03)
    yield made
    assert made.close() == ""


@pytest.mark.parametrize("case", CASES)
def test_abuse(attack: Attack, case: Callable[[Attack], Finding]) -> None:
    finding = case(attack)
    assert finding.good, finding
    assert attack.well()


async def test_soak() -> None:
    found = await Soak(workers=2, seed=5).run(30, clients=12)
    assert found["wrong answers"] == []
    assert found["complaints"] == []
    assert found["board cells in flight or waiting at the end"] == 0
    assert found["requests of the key in flight at the end"] == 0
    assert found["outcomes"]["right"] > 500
    assert found["not right, of all"] < 0.05
    assert all(idle < 30 for _, idle in found["descriptors of each worker, after load and idle"])
