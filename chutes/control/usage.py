"""Usage: a row for every request, sums for every hour, in an SQLite file of its own.

Its own, so that traffic never delays a deployment. One thread writes (see `metering.py`), whatever came
since the last time in one transaction: with a write-ahead log and no flush to the disk per commit, all
that was committed survives the death of this process, though not always that of the machine.

Rows are dropped when they are too old or too many. The sums of each hour by key, chute and status stay
for ever; they are what is charged by.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from chutes.exception import ChutesError
from chutes.wire import Price, Record

FORMAT = 1
HOUR = 3600
# Dropped at a time, between two batches: a few milliseconds.
DROPPED_AT_ONCE = 20_000

RECORD_COLUMNS = Record.__struct_fields__
_SCHEMA = """
CREATE TABLE requests (                 -- in the order in which they ended
    id INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL, key_id TEXT NOT NULL, chute_id TEXT NOT NULL, instance_id TEXT NOT NULL,
    method TEXT NOT NULL, path TEXT NOT NULL, model TEXT NOT NULL, status INTEGER NOT NULL,
    error TEXT NOT NULL, started REAL NOT NULL, queued REAL NOT NULL, first REAL NOT NULL,
    duration REAL NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL, chunks INTEGER NOT NULL, retries INTEGER NOT NULL,
    stream INTEGER NOT NULL,
    ended REAL NOT NULL,                -- started + duration: what is charged when
    cost REAL NOT NULL                  -- US dollars, at the price of that moment
) STRICT;
CREATE INDEX requests_ended ON requests (ended);
CREATE TABLE hours (
    hour INTEGER NOT NULL,              -- Unix seconds of its beginning; a request counts when it ends
    key_id TEXT NOT NULL, chute_id TEXT NOT NULL, status INTEGER NOT NULL,
    requests INTEGER NOT NULL, errors INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
    duration REAL NOT NULL,             -- seconds, all together
    cost REAL NOT NULL,
    PRIMARY KEY (hour, key_id, chute_id, status)
) STRICT, WITHOUT ROWID;
CREATE TABLE names (                    -- of keys and chutes, also of those that are gone
    kind TEXT NOT NULL,                 -- chute or key
    id   TEXT NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE key_use (
    key_id TEXT PRIMARY KEY,
    last   REAL NOT NULL
) STRICT, WITHOUT ROWID;
"""
_INSERT = (
    f"INSERT INTO requests ({', '.join(RECORD_COLUMNS)}, ended, cost)"
    f" VALUES ({', '.join('?' * (len(RECORD_COLUMNS) + 2))})"
)
_FREE = Price()
SUMS = ("requests", "errors", "prompt_tokens", "completion_tokens", "cached_tokens", "duration", "cost")
_ADD = (
    f"INSERT INTO hours VALUES (?, ?, ?, ?, {', '.join('?' * len(SUMS))})"
    " ON CONFLICT (hour, key_id, chute_id, status) DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in SUMS)
)
_USED = (
    "INSERT INTO key_use VALUES (?, ?)"
    " ON CONFLICT (key_id) DO UPDATE SET last = max(last, excluded.last)"
)  # fmt: skip


def cost(record: Record, price: Price) -> float:
    """US dollars that a request costs."""
    cached = min(record.cached_tokens, record.prompt_tokens)
    return (
        (record.prompt_tokens - cached) * price.prompt
        + cached * price.cached
        + record.completion_tokens * price.completion
    ) / 1e6


def failed(record: Record) -> bool:
    """Whether a request counts as an error: refused, failed, or a stream that was cut."""
    return record.status >= 400 or record.error != ""


class UsageStore:
    """The file, as its one writer sees it. One thread at a time.

    Args:
        days: rows older than this are dropped.
        rows: so are the oldest beyond this many.
    """

    def __init__(self, path: Path, days: float = 30.0, rows: int = 2_000_000) -> None:
        """Open the file, or make it.

        Raises:
            ChutesError: it was written by a newer chutes, or is not a database.
        """
        self.path = path
        self._seconds = days * 86400
        self._rows = rows
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # before SQLite sees it: its journal takes these permissions
        path.chmod(0o600)
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
        except sqlite3.DatabaseError as error:
            raise ChutesError(f"{path} cannot be used: {error}.", "Move it away to begin anew.") from None
        if version > FORMAT:
            raise ChutesError(
                f"{path} was written by a newer chutes (format {version}, this one knows {FORMAT}).",
                "Upgrade chutes, or move the file away.",
            )

    def close(self) -> None:
        self._db.close()

    def add(self, records: Sequence[Record], prices: Mapping[str, Price]) -> None:
        """Keep requests that have ended, all or none of them.

        Raises:
            sqlite3.Error: the disk is full, say. Nothing was kept; it may be tried again.
        """
        rows: list[tuple[object, ...]] = []
        sums: dict[tuple[int, str, str, int], list[float]] = {}
        used: dict[str, float] = {}
        for record in records:
            ended = record.started + record.duration
            dollars = cost(record, prices.get(record.chute_id, _FREE))
            rows.append((*msgspec.structs.astuple(record), ended, dollars))
            key = (int(ended) // HOUR * HOUR, record.key_id, record.chute_id, record.status)
            total = sums.get(key)
            if total is None:
                total = sums[key] = [0, 0, 0, 0, 0, 0.0, 0.0]
            total[0] += 1
            total[1] += failed(record)
            total[2] += record.prompt_tokens
            total[3] += record.completion_tokens
            total[4] += record.cached_tokens
            total[5] += record.duration
            total[6] += dollars
            if record.key_id:
                used[record.key_id] = ended
        with self._transaction():
            self._db.executemany(_INSERT, rows)
            self._db.executemany(_ADD, [(*key, *total) for key, total in sums.items()])
            self._db.executemany(_USED, list(used.items()))

    def know(self, names: Mapping[tuple[str, str], str]) -> None:
        """Remember what keys and chutes are called, by kind and id, for reports after they are gone."""
        rows = [(*kind_and_id, name) for kind_and_id, name in names.items()]
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO names VALUES (?, ?, ?)", rows)

    def prune(self, now: float) -> int:
        """Drop some of the rows that are too old or too many; returns how many. 0: there are no more."""
        (last,) = self._db.execute("SELECT max(id) FROM requests").fetchone()
        if last is None:
            return 0
        # Ids have no holes but at the front, where rows are dropped: the count needs no counting. Too old
        # are those at the front too, but for the order of a few that ended together.
        (first,) = self._db.execute("SELECT min(id) FROM requests").fetchone()
        (young,) = self._db.execute(
            "SELECT id FROM requests WHERE ended >= ? ORDER BY ended LIMIT 1", (now - self._seconds,)
        ).fetchone() or (last + 1,)
        keep_from = min(max(young, last - self._rows + 1), first + DROPPED_AT_ONCE)
        if keep_from <= first:
            return 0
        return self._db.execute("DELETE FROM requests WHERE id < ?", (keep_from,)).rowcount

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
