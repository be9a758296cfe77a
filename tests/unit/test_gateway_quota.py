"""Limits of a key over all workers: what is refused, for how long, and what its headers say."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes import wire
from chutes.board import COLUMNS, Board
from chutes.gateway.answers import Refusal
from chutes.gateway.quota import Quota, duration

NOON = 43_200.0


def key(
    requests: int | None = None, tokens: int | None = None, at_once: int | None = None, slot: int | None = 3
) -> wire.Key:
    return wire.Key(
        "k", "d", requests_per_minute=requests, tokens_per_minute=tokens, concurrency=at_once, slot=slot
    )


def workers(count: int) -> list[Quota]:
    board = Board.create(count)
    return [Quota(Board(board.fd, row)) for row in range(count)]


def fields(headers: bytes) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in headers.decode().splitlines())


def began(quota: Quota, key: wire.Key, now: float) -> Refusal | None:
    try:
        quota.begin(key, now)
    except Refusal as refusal:
        return refusal
    return None


def headers(quota: Quota, key: wire.Key, now: float) -> bytes:
    return quota.headers(key, now)


def spend(quota: Quota, key: wire.Key, tokens: int, now: float) -> None:
    assert began(quota, key, now) is None
    quota.end(key, tokens, now)


def refused(quota: Quota, key: wire.Key, now: float) -> Refusal:
    refusal = began(quota, key, now)
    assert refusal is not None
    return refusal


def test_a_key_without_limits_touches_nothing() -> None:
    board = Board(Board.create(1).fd, row=0)
    quota, free = Quota(board), key(slot=None)
    spend(quota, free, 1000, NOON)
    assert headers(quota, free, NOON) == b""
    assert not any(board.mine)


def test_requests_per_minute() -> None:
    (quota,) = workers(1)
    limited = key(requests=2)
    spend(quota, limited, 0, NOON)
    spend(quota, limited, 0, NOON + 1)
    refusal = refused(quota, limited, NOON + 15)
    # At 13:01:00 both still count; half a minute later one has left the window.
    assert fields(refusal.headers) == {
        "Retry-After": "75",
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m45s",
    }
    assert (refusal.status, refusal.code) == (429, "rate_limit_exceeded")
    assert str(refusal) == "This API key has reached its limit of 2 requests per minute."
    assert refusal.fix == "Try again in 75 seconds, or ask whoever runs this platform for a higher limit."
    assert began(quota, limited, NOON + 89) is not None
    assert began(quota, limited, NOON + 90) is None


def test_tokens_count_when_an_answer_ends_and_hold_up_the_next_request() -> None:
    (quota,) = workers(1)
    limited = key(tokens=100)
    assert [began(quota, limited, NOON) for _ in range(3)] == [None] * 3
    quota.end(limited, 99, NOON + 5)
    assert fields(headers(quota, limited, NOON + 5))["x-ratelimit-remaining-tokens"] == "1"
    assert began(quota, limited, NOON + 5) is None
    quota.end(limited, 300, NOON + 6)
    refusal = refused(quota, limited, NOON + 7)
    assert "100 tokens per minute" in str(refusal)
    wait = int(fields(refusal.headers)["Retry-After"])
    assert began(quota, limited, NOON + 7 + wait - 1) is not None
    assert began(quota, limited, NOON + 7 + wait) is None


def test_requests_at_once_over_all_workers() -> None:
    first, second = workers(2)
    limited = key(at_once=2)
    assert began(first, limited, NOON) is None
    assert began(second, limited, NOON) is None
    refusal = refused(second, limited, NOON)
    assert refusal.headers == b"Retry-After: 1\r\n"
    assert "2 requests at once" in str(refusal)
    assert "Wait for one of them to end" in refusal.fix
    first.end(limited, 0, NOON)
    assert began(second, limited, NOON) is None


def test_workers_whose_rows_stand_at_different_minutes_add_up() -> None:
    first, second, third = workers(3)
    limited = key(requests=4)
    spend(first, limited, 0, NOON + 59)
    spend(second, limited, 0, NOON + 59)
    spend(second, limited, 0, NOON + 60)
    # `first` still stands at the minute before; half of the two requests before count.
    remaining = fields(headers(third, limited, NOON + 90))["x-ratelimit-remaining-requests"]
    assert remaining == "2"
    assert fields(headers(first, limited, NOON + 180))["x-ratelimit-remaining-requests"] == "4"


def test_a_clock_read_before_the_minute_and_used_after_it_loses_no_count() -> None:
    for quota in (workers(1)[0], workers(2)[0]):
        limited = key(requests=2)
        spend(quota, limited, 0, NOON + 60)
        spend(quota, limited, 0, NOON + 59.999)
        assert began(quota, limited, NOON + 60) is not None


def test_a_clock_set_back_for_an_hour_does_not_lock_a_key_out() -> None:
    (quota,) = workers(1)
    limited = key(requests=1)
    spend(quota, limited, 0, NOON)
    assert began(quota, limited, NOON - 3600) is None


def test_the_row_of_a_dead_worker_counts_no_more_once_cleared() -> None:
    board = Board.create(2)
    first, second = (Quota(Board(board.fd, row)) for row in range(2))
    limited = key(at_once=1)
    assert began(first, limited, NOON) is None
    assert began(second, limited, NOON) is not None
    board.clear(0)
    assert began(second, limited, NOON) is None


def test_a_key_touches_only_its_own_cells() -> None:
    board = Board(Board.create(1).fd, row=0)
    quota = Quota(board)
    limited = [key(requests=1, slot=slot) for slot in (0, 1, 4095)]
    assert [began(quota, one, NOON) for one in limited] == [None] * 3
    assert len(board.mine) == COLUMNS


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (1, "1s"), (59, "59s"), (60, "1m0s"), (61, "1m1s"), (360, "6m0s")],
)
def test_durations_read_as_openai_writes_them(seconds: int, text: str) -> None:
    assert duration(seconds).decode() == text


STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.floats(0, 40), st.integers(0, 400), st.integers(1, 5)), max_size=40
)
LIMITS = st.one_of(st.none(), st.integers(1, 30))


@given(STEPS, LIMITS, st.one_of(st.none(), st.integers(1, 1500)), st.integers(1, 3))
def test_waiting_for_as_long_as_told_suffices_and_headers_agree_with_what_is_refused(
    steps: list[tuple[int, float, int, int]], requests: int | None, tokens: int | None, count: int
) -> None:
    quotas = workers(count)
    limited = key(requests, tokens)
    now = 1_760_000_000.123
    for worker, seconds, used, burst in steps:
        now += seconds
        quota = quotas[worker % count]
        for _ in range(burst):
            told = fields(headers(quota, limited, now))
            left = [int(value) for name, value in told.items() if "remaining" in name]
            refusal = began(quota, limited, now)
            assert (refusal is None) == all(value >= 1 for value in left)
            if refusal is None:
                quota.end(limited, used, now)
                continue
            assert re.fullmatch(r"(\d+m)?\d+s", told.popitem()[1])
            now += int(fields(refusal.headers)["Retry-After"])
            assert began(quota, limited, now) is None
            quota.end(limited, 0, now)


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 9)), max_size=60), st.integers(1, 20))
def test_no_sixty_seconds_hold_more_than_twice_the_limit_and_no_minute_more_than_the_limit(
    steps: list[tuple[float, int]], most: int
) -> None:
    (quota,) = workers(1)
    limited = key(requests=most)
    now, taken = NOON, []
    for seconds, burst in steps:
        now += seconds
        taken += [now for _ in range(burst) if began(quota, limited, now) is None]
    for start in taken:
        assert sum(start <= at < start + 60 for at in taken) <= 2 * most
        assert sum(start // 60 == at // 60 for at in taken) <= most
