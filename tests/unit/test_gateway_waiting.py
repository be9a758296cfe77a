"""The line of a chute: order, fairness, bounds, deadlines, and what is told to those who wait in vain."""

from __future__ import annotations

import timeit

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chutes.board import QUEUED_AT, Board
from chutes.gateway import limits
from chutes.gateway.answers import Refusal
from chutes.gateway.waiting import Ticket, Waiting, Why

COLUMN = QUEUED_AT + 5


def items(tickets: list[Ticket[str]]) -> list[str]:
    return [ticket.item for ticket in tickets]


def test_one_key_is_served_in_order() -> None:
    line: Waiting[str] = Waiting("org/model")
    for item in "abc":
        line.add(item, "key", Why.BUSY, 0.0)
    first = line.first()
    assert first is not None
    assert (first.item, len(line)) == ("a", 3)
    assert items(line.clear()) == ["a", "b", "c"]
    assert line.first() is line.pop() is None


def test_keys_take_turns() -> None:
    line: Waiting[str] = Waiting("org/model")
    for item in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
        line.add(item, item[0], Why.BUSY, 0.0)
    assert items(line.clear()) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_a_client_that_goes_away_leaves_the_line_once() -> None:
    line: Waiting[str] = Waiting("org/model")
    tickets = [line.add(item, "key", Why.BUSY, 0.0) for item in "abc"]
    line.cancel(tickets[1])
    line.cancel(tickets[1])
    assert items(line.clear()) == ["a", "c"]
    line.cancel(tickets[0])
    assert len(line) == 0


def test_each_kind_has_its_deadline() -> None:
    line: Waiting[str] = Waiting("org/model")
    line.add("starting", "key", Why.STARTING, 0.0)
    line.add("busy", "key", Why.BUSY, 1.0)
    line.add("later", "other", Why.BUSY, 2.0)
    assert line.expired(limits.QUEUE_SECONDS + 0.9) == []
    assert items(line.expired(limits.QUEUE_SECONDS + 1.0)) == ["busy"]
    assert items(line.expired(limits.WAKE_SECONDS)) == ["later", "starting"]
    assert len(line) == 0


def test_the_line_is_bounded_over_all_workers() -> None:
    board = Board.create(2)
    lines: list[Waiting[int]] = [Waiting("org/model", Board(board.fd, row), COLUMN) for row in range(2)]
    for number in range(limits.QUEUE_LENGTH):
        lines[number % 2].add(number, f"key-{number % 10}", Why.BUSY, 0.0)
    assert board.total(COLUMN) == limits.QUEUE_LENGTH
    for line in lines:
        with pytest.raises(Refusal) as caught:
            line.add(0, "key-11", Why.BUSY, 0.0)
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        assert b"Retry-After: " in caught.value.headers
        assert "1000 requests wait for 'org/model'" in str(caught.value)
    lines[0].pop()
    lines[1].add(0, "key-11", Why.BUSY, 0.0)
    for line in lines:
        line.clear()
    assert board.total(COLUMN) == 0


def test_one_key_cannot_take_the_whole_line() -> None:
    line: Waiting[int] = Waiting("org/model")
    for number in range(int(limits.QUEUE_LENGTH * (1 - limits.QUEUE_OTHERS_SHARE))):
        line.add(number, "greedy", Why.BUSY, 0.0)
    with pytest.raises(Refusal, match="750 requests wait for"):
        line.add(0, "greedy", Why.BUSY, 0.0)
    for number in range(10):
        line.add(number, "modest", Why.BUSY, 0.0)
    served = [ticket.key_id for _ in range(20) if (ticket := line.pop())]
    assert served.count("modest") == 10


def test_what_those_are_told_who_waited_in_vain() -> None:
    line: Waiting[str] = Waiting("org/model")
    busy = line.timeout(line.add("a", "key", Why.BUSY, 0.0))
    starting = line.timeout(line.add("b", "key", Why.STARTING, 0.0))
    failed = line.failed("Not enough memory.")
    assert [(r.status, r.code) for r in (busy, starting, failed)] == [
        (429, "queue_timeout"),
        (503, "queue_timeout"),
        (503, "chute_not_ready"),
    ]
    assert busy.headers == starting.headers == b"Retry-After: 5\r\n"
    assert failed.headers == b"x-should-retry: false\r\n"
    assert "failed to start: Not enough memory." in str(failed)
    assert all(refusal.fix for refusal in (busy, starting, failed))


def test_deadlines_are_below_the_clients_own() -> None:
    assert limits.QUEUE_SECONDS < limits.WAKE_SECONDS < 600


def test_a_long_line_is_no_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "QUEUE_LENGTH", 10**9)

    def seconds(length: int) -> float:
        line: Waiting[int] = Waiting("org/model")
        tickets = [line.add(number, f"key-{number % 7}", Why.BUSY, 0.0) for number in range(length)]
        for ticket in tickets[: length // 2]:  # the front of the line leaves it
            line.cancel(ticket)

        def one() -> None:
            ticket = line.add(0, "key", Why.BUSY, 0.0)
            line.add(0, "key", Why.BUSY, 0.0)
            line.cancel(ticket)
            line.pop()
            line.expired(1.0)

        return min(timeit.repeat(one, number=200, repeat=5)) / 200

    short, long = seconds(20), seconds(50_000)
    print(f"add, add, cancel, pop, expired: {short * 1e6:.1f} µs in a line of 20, {long * 1e6:.1f} in 50,000")
    assert long < 10 * short


class Lines(RuleBasedStateMachine):
    """Against a list of what waits: nobody is lost, served twice, overtaken by its own key or passed over."""

    def __init__(self) -> None:
        super().__init__()
        self.board = Board(Board.create(1).fd, row=0)
        self.line: Waiting[int] = Waiting("org/model", self.board, COLUMN)
        self.model: list[Ticket[int]] = []
        self.now = 0.0
        self.number = 0
        self.last_key = ""
        """Whose turn it was last."""
        self.passed: list[Ticket[int]] = []
        """What the other keys had waiting then."""

    @rule(key=st.sampled_from("abc"), why=st.sampled_from(Why))
    def add(self, key: str, why: Why) -> None:
        self.number += 1
        self.model.append(self.line.add(self.number, key, why, self.now))

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        gone = self.line.expired(self.now)
        assert set(gone) == {t for t in self.model if self.now - t.since >= t.why.value}
        self.model = [ticket for ticket in self.model if ticket not in gone]

    @rule(index=st.integers(0, 50))
    def cancel(self, index: int) -> None:
        if self.model:
            self.line.cancel(self.model.pop(index % len(self.model)))

    @rule()
    def pop(self) -> None:
        ticket = self.line.pop()
        if not self.model:
            assert ticket is None
            return
        assert ticket is not None
        assert ticket is next(t for t in self.model if t.key_id == ticket.key_id)
        self.model.remove(ticket)
        if ticket.key_id == self.last_key:
            assert not any(other.waiting for other in self.passed), "a key that waited was passed over"
        self.last_key = ticket.key_id
        self.passed = [other for other in self.model if other.key_id != ticket.key_id]

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.line) == len(self.model) == self.board.total(COLUMN) == self.line.total()
        assert all(ticket.waiting for ticket in self.model)


TestLines = Lines.TestCase
TestLines.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
