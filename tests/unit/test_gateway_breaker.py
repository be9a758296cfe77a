"""The breaker: what leaves an instance out, for how long, and what brings it back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chutes.gateway import limits
from chutes.gateway.breaker import (
    HEALTHY,
    Health,
    Phase,
    failed,
    is_failure,
    reached,
    succeeded,
    tried,
    unreachable,
    usable,
)


def may_try(health: Health, now: float) -> bool:
    """Whether it gets requests while two others are well."""
    indexes = usable([health, HEALTHY, HEALTHY], now)
    return indexes is None or 0 in indexes


def opened(now: float) -> Health:
    """One that is there and answered with too many failures."""
    health = HEALTHY
    for request in range(limits.BREAKER_FAILURES):
        health = failed(health, request, now)
    return health


def test_a_refused_connection_leaves_it_out_for_a_second_and_then_one_request_tries() -> None:
    health = unreachable(HEALTHY, 100.0)
    assert not may_try(health, 100.9)
    assert may_try(health, 101.0)
    health = tried(health, 101.0)
    assert health.phase is Phase.HALF_OPEN
    assert not may_try(health, 101.1), "only one tries"
    health = succeeded(health, 101.5)
    assert may_try(health, 101.5)


def test_each_failed_try_doubles_the_wait_up_to_thirty_seconds() -> None:
    health, now, waits = HEALTHY, 50.0, []
    for _ in range(8):
        health = unreachable(health, now)
        waits.append(health.until - now)
        now = health.until
        health = tried(health, now)
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_the_doubling_is_remembered_for_a_minute_after_it_came_back() -> None:
    back = succeeded(tried(unreachable(HEALTHY, 0.0), 1.0), 1.0)
    assert unreachable(back, 30.0).until == 32.0
    assert unreachable(back, 100.0).until == 101.0
    assert succeeded(back, 30.0) == back
    assert succeeded(back, 70.0) is HEALTHY


def test_one_bad_prompt_however_often_repeated_ejects_nobody() -> None:
    health = HEALTHY
    for second in range(1000):
        health = failed(health, request=7, now=float(second))
    assert health.phase is Phase.CLOSED


def test_different_requests_that_fail_in_a_row_do() -> None:
    health = HEALTHY
    for request in range(limits.BREAKER_FAILURES - 1):
        health = failed(health, request, 10.0)
        assert may_try(health, 10.0)
    assert failed(health, 99, 10.0).phase is Phase.OPEN
    assert failed(succeeded(health, 10.0), 99, 10.0).phase is Phase.CLOSED, "a success forgets"


def test_news_of_older_requests_changes_nothing_while_it_is_left_out() -> None:
    health = unreachable(HEALTHY, 0.0)
    assert failed(health, 1, 0.5) is health
    assert unreachable(health, 0.5) is health
    assert succeeded(health, 0.5) is health


def test_a_try_that_never_tells_how_it_went_blocks_the_next_for_a_while_only() -> None:
    health = tried(unreachable(HEALTHY, 0.0), 1.0)
    assert not may_try(health, 1.0 + limits.PROBE_SECONDS - 0.1)
    assert may_try(health, 1.0 + limits.PROBE_SECONDS)
    assert tried(health, 1.0 + limits.PROBE_SECONDS).until == 1.0 + 2 * limits.PROBE_SECONDS


def test_the_last_one_standing_and_any_majority_are_never_left_out() -> None:
    sick = opened(0.0)
    assert usable([sick], 0.1) is None
    assert usable([sick, HEALTHY], 0.1) == [1]
    assert usable([sick, sick], 0.1) is None
    assert usable([sick, sick, HEALTHY], 0.1) is None
    assert usable([sick, sick, HEALTHY, HEALTHY], 0.1) == [2, 3]


def test_nobody_is_sent_where_nobody_is_there_until_one_may_look_again() -> None:
    absent = unreachable(HEALTHY, 0.0)
    assert usable([absent], 0.1) == []
    assert usable([absent, opened(0.0), absent], 0.1) == [1]
    assert usable([absent, absent, HEALTHY], 0.1) == [2]
    assert usable([absent], 1.0) is None
    looking = tried(absent, 1.0)
    assert usable([looking], 1.1) == []
    assert usable([reached(looking)], 1.1) is None, "a long answer does not hold up the others"
    assert usable([unreachable(opened(0.0), 0.1)], 0.2) == []


def test_which_answers_speak_against_an_instance() -> None:
    assert [status for status in (200, 400, 429, 499, 500, 501, 502, 503) if is_failure(status)] == [
        500,
        502,
        503,
    ]


EVENTS = st.lists(
    st.tuples(st.sampled_from(["refused", "failed", "ok", "sent"]), st.integers(0, 9), st.floats(0, 20)),
    max_size=60,
)


@given(EVENTS)
def test_it_is_never_left_out_for_more_than_thirty_seconds_and_always_comes_back(
    events: list[tuple[str, int, float]],
) -> None:
    health, now = HEALTHY, 1000.0
    for event, request, seconds in events:
        now += seconds
        if event == "refused":
            health = unreachable(health, now)
        elif event == "failed":
            health = failed(health, request, now)
        elif event == "ok":
            health = succeeded(health, now)
        else:
            health = tried(health, now)
        assert health.phase is Phase.CLOSED or health.until - now <= limits.BREAKER_MOST_SECONDS
        assert len(health.failed) < limits.BREAKER_FAILURES
    now += limits.BREAKER_MOST_SECONDS
    assert may_try(health, now)
    later = now + limits.BREAKER_MEMORY_SECONDS
    assert succeeded(succeeded(tried(health, now), now), later) is HEALTHY


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_at_least_half_of_the_instances_are_always_usable(sick: list[bool]) -> None:
    left_out = opened(0.0)
    indexes = usable([left_out if is_sick else HEALTHY for is_sick in sick], 0.5)
    count = len(sick) if indexes is None else len(indexes)
    assert 2 * count >= len(sick)
