"""Questions about usage. Each opens the file for itself, beside the writer, and only reads."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from chutes.control.usage import HOUR, SUMS
from chutes.exception import ChutesError, NotFound, UsageError
from chutes.util import times

By = Literal["chute", "key", "hour", "day", "status"]
BY: tuple[By, ...] = ("chute", "key", "hour", "day", "status")
MAX_ITEMS = 1000
# Sorting more would take seconds, and the percentiles of these are as good.
MAX_SORTED = 200_000
BUSY_SECONDS = 5.0

_GROUP = {
    "chute": "chute_id",
    "key": "key_id",
    "hour": "hour",
    "day": "hour / 86400 * 86400",
    "status": "status",
}
_HOUR_OF_ROW = f"CAST(ended AS INTEGER) / {HOUR} * {HOUR}"


class UsageItem(BaseModel):
    """Requests of one chute, key, hour, day or status."""

    group: str
    """Id of a chute or key, or the status; for hours and days their beginning, `2026-12-31 18:00` UTC."""
    name: str
    """For a person: what the chute or key is called."""
    requests: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    ttft_p50_seconds: float | None = None
    """Of streams; None where there are none, or their rows are gone."""
    ttft_p95_seconds: float | None = None
    mean_seconds: float
    cost_usd: float


class UsageView(BaseModel):
    since: float
    """Unix seconds. The asked one, or the beginning of its hour where rows that old are gone."""
    by: By
    total: int
    """Groups that there are; `items` are some of them."""
    page: int
    limit: int
    items: list[UsageItem]
    sum: UsageItem


def query(
    path: Path,
    now: float,
    since: str = "24h",
    by: str = "chute",
    chute: str | None = None,
    key: str | None = None,
    page: int = 0,
    limit: int = 100,
) -> UsageView:
    """Sums of the requests that ended since then, largest group first; hours and days latest first.

    Args:
        since: as in `util/times`.
        chute: name or id of the only chute that counts.
        key: the same for keys.

    Raises:
        UsageError: a parameter is none of those that there are.
        NotFound: nothing is known of such a chute or key.
    """
    if by not in BY:
        raise UsageError(f"Usage cannot be summed by {by!r}.", f"by is one of {', '.join(BY)}.")
    if not (1 <= limit <= MAX_ITEMS and page >= 0):
        raise UsageError(f"limit is 1 to {MAX_ITEMS} and page 0 or more, not {limit} and {page}.")
    begin = times.before(since, now)
    with _reading(path) as db:
        chutes = _ids(db, "chute", chute)
        keys = _ids(db, "key", key)
        return _answer(db, begin, by, chutes, keys, page, limit)  # pyright: ignore[reportArgumentType]


def last_use(path: Path) -> dict[str, float]:
    """When each key was last used, by id."""
    with _reading(path) as db:
        return dict(db.execute("SELECT key_id, last FROM key_use"))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    except sqlite3.Error as error:
        raise ChutesError(f"{path} cannot be read: {error}.") from None
    try:
        db.execute("BEGIN")  # one moment for all of its questions
        yield db
    except sqlite3.Error as error:
        raise ChutesError(f"{path} cannot be read: {error}.") from None
    finally:
        db.close()


def _ids(db: sqlite3.Connection, kind: str, name: str | None) -> list[str] | None:
    """Ids of what is, or was, called so."""
    if name is None:
        return None
    found: list[str] = []
    for condition in ("? IN (id, name)", "lower(?) = lower(name)"):
        rows = db.execute(f"SELECT id FROM names WHERE kind = ? AND {condition}", (kind, name))
        found = found or [id_ for (id_,) in rows]
    if not found:
        command = "chutes ps" if kind == "chute" else "chutes keys list"
        raise NotFound(f"Nothing is known of a {kind} {name!r}.", f"`{command}` shows those there are.")
    return found


def _answer(
    db: sqlite3.Connection,
    begin: float,
    by: By,
    chutes: list[str] | None,
    keys: list[str] | None,
    page: int,
    limit: int,
) -> UsageView:
    where, values = "1", []
    for column, ids in (("chute_id", chutes), ("key_id", keys)):
        if ids is not None:
            where += f" AND {column} IN ({', '.join('?' * len(ids))})"
            values += ids

    # Whole hours are summed already; only the first, cut by `begin`, needs its rows. Where those are gone
    # it counts whole.
    oldest, first_id = db.execute("SELECT min(ended), min(id) FROM requests").fetchone()
    first_whole = -(-int(begin) // HOUR) * HOUR
    older = db.execute("SELECT 1 FROM hours WHERE hour < ? LIMIT 1", (begin,)).fetchone()
    dropped = older and (oldest is None or (oldest > begin and first_id > 1))
    if begin < first_whole and dropped:
        first_whole -= HOUR
        begin = float(first_whole)
    columns = ", ".join(SUMS)
    source = f"""
        SELECT hour, key_id, chute_id, status, {columns} FROM hours WHERE hour >= ? AND {where}
        UNION ALL
        SELECT {_HOUR_OF_ROW}, key_id, chute_id, status, 1, (status >= 400 OR error <> ''),
               prompt_tokens, completion_tokens, cached_tokens, duration, cost
        FROM requests WHERE ended >= ? AND ended < ? AND {where}"""
    arguments = [first_whole, *values, begin, first_whole, *values]
    sums = ", ".join(f"coalesce(sum({name}), 0)" for name in SUMS)
    order = "1 DESC" if by in ("hour", "day") else "cost DESC, requests DESC, 1"
    group = _GROUP[by]
    (total,) = db.execute(f"SELECT count(DISTINCT {group}) FROM ({source})", arguments).fetchone()
    rows = db.execute(
        f"SELECT {group}, {', '.join(f'sum({name}) AS {name}' for name in SUMS)} FROM ({source})"
        f" GROUP BY 1 ORDER BY {order} LIMIT ? OFFSET ?",
        [*arguments, limit, page * limit],
    ).fetchall()
    whole = db.execute(f"SELECT {sums} FROM ({source})", arguments).fetchone()
    names = dict(db.execute("SELECT id, name FROM names WHERE kind = ?", (by,)))
    percentiles = _percentiles(db, group.replace("hour", _HOUR_OF_ROW), begin, where, values)
    of_all = _percentiles(db, "''", begin, where, values).get("", (None, None))
    return UsageView(
        since=begin,
        by=by,
        total=total,
        page=page,
        limit=limit,
        items=[
            _item(_shown(by, key), _name(by, key, names), sums, percentiles.get(key, (None, None)))
            for key, *sums in rows
        ],
        sum=_item("", "all", list(whole), of_all),
    )


def _percentiles(
    db: sqlite3.Connection, group: str, begin: float, where: str, values: list[str]
) -> dict[str | int, tuple[float | None, float | None]]:
    """p50 and p95 of the time to the first token, by group, over the latest streams."""
    rows = db.execute(
        f"""
        WITH latest AS (
            SELECT {group} AS grouped, first FROM requests
            WHERE ended >= ? AND stream AND first > 0 AND status < 400 AND {where}
            ORDER BY ended DESC LIMIT {MAX_SORTED}),
        ranked AS (
            SELECT grouped, first, row_number() OVER (PARTITION BY grouped ORDER BY first) AS place,
                   count(*) OVER (PARTITION BY grouped) AS many FROM latest)
        SELECT grouped, max(CASE WHEN place = (many + 1) / 2 THEN first END),
               max(CASE WHEN place = (many * 95 + 99) / 100 THEN first END)
        FROM ranked GROUP BY grouped""",
        [begin, *values],
    )
    return {key: (p50, p95) for key, p50, p95 in rows}


def _item(group: str, name: str, sums: list[float], ttft: tuple[float | None, float | None]) -> UsageItem:
    requests, errors, prompt, completion, cached, duration, cost = sums
    return UsageItem(
        group=group,
        name=name,
        requests=int(requests),
        errors=int(errors),
        prompt_tokens=int(prompt),
        completion_tokens=int(completion),
        cached_tokens=int(cached),
        ttft_p50_seconds=ttft[0],
        ttft_p95_seconds=ttft[1],
        mean_seconds=duration / requests if requests else 0.0,
        cost_usd=cost,
    )


def _shown(by: By, key: str | int) -> str:
    return times.utc(float(key)) if by in ("hour", "day") else str(key)


def _name(by: By, key: str | int, names: dict[str, str]) -> str:
    if by == "hour":
        return times.utc(float(key))
    if by == "day":
        return times.utc(float(key))[:10]
    return names.get(str(key), str(key)) or "(none)"  # refused before a key or chute was known
