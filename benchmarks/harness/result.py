"""The file that a run leaves: everything that is needed to believe it, to compare it, to measure it anew.

Raw records are inside the file, not beside it: a file with a second one beside it is copied alone one day, or
with the wrong one. They are packed (msgpack, gzip, base64), with the times of tokens as whole microseconds
between one event and the next: two bytes a token, where a list of floats in JSON takes twenty.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import itertools
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness.records import Record
from chutes.exception import UsageError

KIND = "chutes-bench"
SCHEMA_VERSION = 1
PACKING = "msgpack+gzip+base64"
MICRO = 1e6


class Environment(msgspec.Struct, kw_only=True):
    """Where it was measured. Made by `environment.before()` and completed by `environment.after()`."""

    cpu: str = ""
    cpus: int = 0
    """Of the machine."""
    cores: list[int] = []
    """That this process might use."""
    memory_bytes: int = 0
    system: str = ""
    """Kernel and C library."""
    busy_before: float | None = None
    """Share of all CPUs that something used before anything was asked, in the quietest of several looks."""
    load_before: tuple[float, float, float] | None = None
    load_after: tuple[float, float, float] | None = None
    """Load averages over 1, 5 and 15 minutes."""
    steal: float | None = None
    """Share of CPU time that the hypervisor gave to others during the run."""
    busy: float | None = None
    """Share of CPU time in use during the run, by anybody."""
    gpus: list[str] = []
    versions: dict[str, str] = {}
    """python, chutes, the engine's, its libraries'."""
    commit: str | None = None
    """Of the checkout; ends in `+` when files were changed since."""


class Target(msgspec.Struct, kw_only=True):
    """Something that was asked."""

    name: str
    """As in `Record.target`: `gateway`, `engine`, …"""
    url: str
    """Without a key."""
    model: str
    engine: str = ""
    engine_version: str = ""
    deployment_version: str = ""
    arguments: list[str] = []
    """Of the engine, where they are known."""
    plan: dict[str, Any] | None = None
    """What the control API said of the deployment's plan."""


class Samples(msgspec.Struct, kw_only=True):
    """What was looked at once a second. Every series is as long as `at`; None where there was no answer."""

    at: list[float] = []
    """Seconds on the clock of the records."""
    series: dict[str, list[float | None]] = {}
    """By name and unit, see `sampling`: `engine_running`, `engine_kv_cache_usage`, `gpu0_power_watts`, …"""
    absent: dict[str, str] = {}
    """Sources that gave nothing, and why."""


class Client(msgspec.Struct, kw_only=True):
    """The load generator on itself."""

    processes: int = 1
    lag_p50: float = 0.0
    lag_p99: float = 0.0
    """Seconds by which a pulse of its loop, a hundred times a second, was late: also where no request had a
    time to be sent at. The lag of each request is in its record."""
    busy: float | None = None
    """CPU of its busiest process, as a share of one core."""
    ceiling: float | None = None
    """Requests a second that it can send here, where that was measured."""


class Phase(msgspec.Struct, kw_only=True):
    """One load, held for a while: a run has one, a sweep one for each rate, an A/B run one for each turn."""

    name: str
    """What it is called in tables. Repeats of one load have one name and differ in `block`."""
    load: dict[str, Any] = {}
    """How requests came: `kind` (poisson, gamma, constant, trace, closed), `rate` in requests/s or
    `concurrency`, `burstiness`, `requests`, `seconds`. What differs between phases of a sweep."""
    target: str = ""
    """The one target that was asked; empty when requests alternate (see `Record.target`)."""
    block: int = 0
    """Its number among repeats, or the number of its round when targets take turns."""
    started: str = ""
    """Wall clock, UTC, ISO 8601: where the records' clock is 0."""
    window: tuple[float, float] | None = None
    """Warm-up and cool-down are outside, where the run was told to leave them out. Seconds of the records."""
    seconds: float = 0.0
    """How long it took in all."""
    interrupted: str = ""
    """Why it ended before its time; empty when it did not."""
    records: list[Record] = []
    samples: Samples = msgspec.field(default_factory=Samples)
    client: Client = msgspec.field(default_factory=Client)
    summary: dict[str, Any] = {}
    """What `summary.summary` says of it, for those who read the file without this program."""


class Prediction(msgspec.Struct, kw_only=True):
    """What the planner said before anything ran; see `planner.prediction`."""

    hardware: str = ""
    context: int | None = None
    tokens_per_second: float | None = None
    """Of one request alone."""
    batch: int | None = None
    tokens_per_second_batch: float | None = None
    """Of all of a batch together."""
    prefill_tokens_per_second: float | None = None
    memory_bytes: int | None = None
    """Of the engine, on each GPU; on a CPU of its processes."""
    kv_cache_tokens: int | None = None
    usd_per_hour: float | None = None
    price_date: str = ""


class Result(msgspec.Struct, kw_only=True):
    """One run of the benchmark."""

    kind: str = KIND
    schema_version: int = SCHEMA_VERSION
    when: str
    """UTC, ISO 8601."""
    command: str
    """Exactly as it can be typed again; a key in it is struck out."""
    config: dict[str, Any]
    """Everything that was asked for, defaults filled in: workload, load, lengths, SLO, processes. Two results
    whose configs differ are not compared without a warning."""
    seed: int
    salt: str = ""
    """What makes the prompts of this run its own, so that no cache knows them."""
    slo: dict[str, float] = {}
    """Milliseconds by `ttft`, `tpot`, `e2el`."""
    environment: Environment = msgspec.field(default_factory=Environment)
    targets: list[Target] = []
    phases: list[Phase] = []
    prediction: Prediction | None = None
    interrupted: str = ""
    thinned: bool = False
    """Times of tokens between a request's first and last were left out, as in baselines."""
    notes: list[str] = []
    """What a reader must know before believing it."""


def write(result: Result, path: Path) -> None:
    """Put it there whole or not at all: what stood there before stays until the new one is on the disk."""
    document = msgspec.to_builtins(result)
    for phase, plain in zip(result.phases, document["phases"], strict=True):
        plain["records"] = pack(phase.records)
    text = msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
    replace_file(path, text)


def replace_file(path: Path, content: bytes) -> None:
    """Write beside it, flush, and put it in its place in one step.

    Raises:
        UsageError: the folder cannot be written to, or the disk is full.
    """
    beside = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            beside = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)  # a temporary file is for its owner's eyes only
        os.replace(beside, path)  # noqa: PTH105
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}", "Choose another place with --output."
        ) from None
    finally:
        if beside:
            Path(beside).unlink(missing_ok=True)


def read(path: Path) -> Result:
    """Read what `write` wrote.

    Raises:
        UsageError: it is not there, not a result, of another schema, or damaged; says which.
    """
    try:
        document = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(
            f"There is no file {path}.", "`make bench` says where it puts its results."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is not JSON, or only a part of it: {error}", _AGAIN) from None
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise UsageError(
            f"{path} is JSON, but not a result of this benchmark.",
            'Results have `"kind": "chutes-bench"`; files of other tools cannot be compared here.',
        )
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{path} has schema version {version}; this program reads version {SCHEMA_VERSION}.",
            "Measure again, or read it with the version of chutes that wrote it (see `environment`).",
        )
    try:
        for phase in document.get("phases", []):
            phase["records"] = unpack(phase["records"])
        return msgspec.convert(document, Result)
    except (msgspec.ValidationError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} is damaged: {error}", _AGAIN) from None


_AGAIN = "It was cut off or edited. Measure again; this program never leaves half a file."


def pack(records: list[Record]) -> dict[str, Any]:
    """Records as text that fits into JSON. Times of tokens keep whole microseconds."""
    rows: list[dict[str, Any]] = []
    for record in records:
        row = msgspec.to_builtins(record)
        if record.times:
            row["times"] = _gaps([record.first or 0.0, *record.times])
        rows.append(row)
    # The time of packing would make two equal results differ.
    data = gzip.compress(msgspec.msgpack.encode(rows), mtime=0)
    return {"encoding": PACKING, "count": len(records), "data": base64.b64encode(data).decode()}


def unpack(packed: dict[str, Any]) -> list[Record]:
    """What `pack` made.

    Raises:
        ValueError: it is not what it was.
    """
    if packed["encoding"] != PACKING:
        raise ValueError(f"records are packed as {packed['encoding']!r}, not {PACKING!r}")
    try:
        rows = msgspec.msgpack.decode(gzip.decompress(base64.b64decode(packed["data"], validate=True)))
    except (binascii.Error, OSError, EOFError, zlib.error, msgspec.DecodeError) as error:
        raise ValueError(f"records cannot be unpacked: {error}") from None
    for row in rows:
        if "times" in row:
            row["times"] = _times(row.get("first") or 0.0, row["times"])
            if "last" in row:  # known to the bit: rounded up, it would lie after the end of the run
                row["times"][-1] = row["last"]
    records = msgspec.convert(rows, list[Record])
    if len(records) != packed["count"]:
        raise ValueError(f"{len(records)} records where {packed['count']} were written")
    return records


def _gaps(times: list[float]) -> list[int]:
    """Differences of rounded times, so that the error of many does not add up."""
    whole = [round(time * MICRO) for time in times]
    return [after - before for before, after in itertools.pairwise(whole)]


def _times(first: float, gaps: list[int]) -> list[float]:
    at, times = round(first * MICRO), []
    for gap in gaps:
        at += gap
        times.append(at / MICRO)
    return times
