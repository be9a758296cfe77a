"""The instances of a chute and who gets a place on which."""

from __future__ import annotations

from collections.abc import Sequence

from chutes import wire
from chutes.board import Board
from chutes.gateway.answers import Refusal
from chutes.gateway.upstream import Group, Instance
from chutes.gateway.waiting import Waiting, Why


class Asking:
    """A request in the line, which notes where it came to."""

    prefix = None

    def __init__(self, avoid: Sequence[Instance] = ()) -> None:
        self.avoid = avoid
        self.got = ""

    def proceed(self, instance: Instance) -> None:
        instance.begin()
        self.got = instance.instance_id

    def give_up(self, refusal: Refusal) -> None:
        self.got = refusal.code


def group(*names: str) -> Group[Asking]:
    """Of instances that take one request at a time."""
    upstreams = [wire.Upstream(name, "127.0.0.1", 1, "k", slot) for slot, name in enumerate(names)]
    route = wire.Route("c", "m", {}, upstreams, "ready", "", 0, "vllm", concurrency=1)
    board = Board(Board.create(1).fd, row=0)
    made: Group[Asking] = Group("c", Waiting("m"), board)
    made.swap(route, upstreams, 0.0)
    return made


def test_one_that_has_not_failed_a_request_is_preferred() -> None:
    chute = group("a", "b")
    asking = Asking(avoid=[chute.instances[0]])
    chute.line.add(asking, "key", Why.BUSY, 0.0)
    chute.serve(1.0)
    assert asking.got == "b"


def test_nobody_waits_behind_a_request_that_would_rather_have_another_instance() -> None:
    chute = group("a", "b")
    chute.instances[1].begin()  # full
    first, second = Asking(avoid=[chute.instances[0]]), Asking()
    for one in (first, second):
        chute.line.add(one, "key", Why.BUSY, 0.0)
    chute.serve(1.0)
    assert (first.got, second.got) == ("a", "")
    chute.instances[1].end()
    chute.serve(2.0)
    assert second.got == "b"
