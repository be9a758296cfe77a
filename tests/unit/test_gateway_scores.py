"""The order in which the chutes of a comma list are tried."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes.gateway.scores import UNSCORED, Preference, Room, Score, rank, scored

SCORES = {"fast": Score(0.1, 20.0), "wide": Score(0.5, 90.0), "slow": Score(2.0, 5.0)}


def order(preference: Preference, *destinations: tuple[str, Room]) -> list[str]:
    return rank([(name, name, room) for name, room in destinations], preference, SCORES)


def test_failover_takes_free_ones_then_full_ones_then_those_that_must_wake() -> None:
    asked = [("a", Room.NONE), ("b", Room.FULL), ("c", Room.FREE), ("d", Room.NONE), ("e", Room.FREE)]
    assert order(Preference.FAILOVER, *asked) == ["c", "e", "b", "a", "d"]


def test_latency_and_throughput_go_by_their_scores_and_leave_what_is_unknown_last() -> None:
    asked = [(name, Room.FREE) for name in ("new", "slow", "wide", "fast", "newer")]
    assert order(Preference.LATENCY, *asked) == ["fast", "wide", "slow", "new", "newer"]
    assert order(Preference.THROUGHPUT, *asked) == ["wide", "fast", "slow", "new", "newer"]


@pytest.mark.parametrize("preference", [Preference.LATENCY, Preference.THROUGHPUT])
def test_no_preference_makes_a_caller_wait_for_a_chute_to_wake(preference: Preference) -> None:
    assert order(preference, ("fast", Room.NONE), ("wide", Room.NONE), ("new", Room.FULL))[0] == "new"


def test_scores_follow_what_is_met() -> None:
    score = scored(UNSCORED, first=0.2, duration=1.2, tokens=51)
    assert score == Score(0.2, 50.0)
    for _ in range(60):
        score = scored(score, first=1.0, duration=2.0, tokens=11)
    assert score.first == pytest.approx(1.0, rel=0.01)
    assert score.rate == pytest.approx(10.0, rel=0.02)


def test_an_answer_of_one_token_has_no_rate() -> None:
    assert scored(Score(0.1, 30.0), 0.1, 0.1, 1).rate == 30.0
    assert scored(UNSCORED, 0.1, 0.1, 5).rate == 0.0


@given(
    st.lists(
        st.tuples(st.sampled_from(["fast", "wide", "slow", "x", "y"]), st.sampled_from(Room)), max_size=8
    ),
    st.sampled_from(Preference),
)
def test_every_one_is_kept_once_and_equals_keep_the_given_order(
    asked: list[tuple[str, Room]], preference: Preference
) -> None:
    ranked = rank([(number, name, room) for number, (name, room) in enumerate(asked)], preference, SCORES)
    assert sorted(ranked) == list(range(len(asked)))
    for before, after in pairwise(ranked):
        if asked[before] == asked[after]:
            assert before < after
