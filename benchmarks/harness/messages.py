"""What the benchmark and its client processes say to each other: frames of msgpack over a pipe each way.

to a client     Plan, then Go at a common time, then nothing: the end of the pipe means stop
from a client   Ready, Answered for each request as it ends, Report
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from benchmarks.harness.records import Record
from benchmarks.harness.schedule import Load

_LENGTH = struct.Struct("<I")
FRAME_HEAD = _LENGTH.size


class Address(msgspec.Struct, array_like=True):
    """Where and as whom a target is asked."""

    name: str
    host: str
    port: int
    tls: bool
    verify: bool
    """Of TLS: whether its certificate must be good."""
    prefix: str
    """What stands before `/v1` in paths, mostly nothing."""
    key: str
    model: str


class Ask(msgspec.Struct, array_like=True):
    """One request of the workload, ready to be sent but for the name of the model."""

    number: int
    path: str
    body: bytes
    """A JSON object without `model`."""
    wanted_input_tokens: int | None = None
    wanted_output_tokens: int | None = None
    conversation: int | None = None
    turn: int = 0


class Job(msgspec.Struct, array_like=True):
    """What is asked in one go: one request, or the turns of a conversation one after the other."""

    asks: list[Ask]
    target: int = 0
    """Which of the plan's addresses."""
    at: float = 0.0
    """When the first of them is due, of an open loop."""


class Plan(msgspec.Struct, tag=True):
    """All that one client process does."""

    client: int
    addresses: list[Address]
    jobs: list[Job]
    load: Load
    users: list[float]
    """When each of its users begins, of a closed loop."""
    timeout: float
    """Seconds that one request may take."""
    drain: float
    """Seconds after the last request was begun, or `load.seconds` were over, until the rest is given up."""
    think: float = 0.0
    """Seconds between an answer and the next turn of its conversation."""
    connections: int = 0
    """To be opened to each target before the load begins."""


class Go(msgspec.Struct, tag=True):
    start: float
    """CLOCK_MONOTONIC at which the records' clock is 0."""


class Ready(msgspec.Struct, tag=True):
    """Everything is prepared."""


class Answered(msgspec.Struct, tag=True):
    record: Record


class Report(msgspec.Struct, tag=True):
    """The client on itself, at its end."""

    late: list[float]
    """Seconds by which each pulse of its loop was late, whatever the requests did."""
    busy: float
    """Its CPU time as a share of one core."""
    seconds: float
    jobs_left: int
    """Of the workload, that were never begun."""


ToClient = Plan | Go
FromClient = Ready | Answered | Report

encoder = msgspec.msgpack.Encoder()
to_client = msgspec.msgpack.Decoder(ToClient)
from_client = msgspec.msgpack.Decoder(FromClient)


def framed(message: ToClient | FromClient) -> bytes:
    data = encoder.encode(message)
    return _LENGTH.pack(len(data)) + data


def length_of(head: bytes) -> int:
    return _LENGTH.unpack(head)[0]


def frames(buffer: bytearray) -> Iterator[bytes]:
    """Take every whole frame out of what has come so far."""
    at = 0
    while len(buffer) - at >= FRAME_HEAD:
        end = at + FRAME_HEAD + length_of(bytes(buffer[at : at + FRAME_HEAD]))
        if end > len(buffer):
            break
        yield bytes(buffer[at + FRAME_HEAD : end])
        at = end
    del buffer[:at]
