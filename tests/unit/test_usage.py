"""Usage: what is kept of requests, what is asked of it."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from chutes.control import usage
from chutes.control.usage import UsageStore
from chutes.control.usage_query import last_use, query
from chutes.exception import ChutesError, NotFound, UsageError
from chutes.wire import Price
from tests.unit.records import HOUR, record

NOW = HOUR + 600.0
PRICES = {"c-1": Price(prompt=1.0, completion=10.0, cached=0.5)}


@pytest.fixture
def store(tmp_path: Path) -> UsageStore:
    return UsageStore(tmp_path / "usage.db")


def count(store: UsageStore, table: str = "requests") -> int:
    with sqlite3.connect(store.path) as db:
        return db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def test_a_request_costs_its_tokens_and_cached_ones_only_once() -> None:
    assert usage.cost(record(), PRICES["c-1"]) == pytest.approx((60 * 1.0 + 40 * 0.5 + 20 * 10.0) / 1e6)
    assert usage.cost(record(cached_tokens=999), PRICES["c-1"]) == pytest.approx(
        (100 * 0.5 + 20 * 10.0) / 1e6
    )
    assert usage.cost(record(), Price()) == 0


def test_every_field_of_a_record_is_kept(store: UsageStore) -> None:
    store.add([record()], PRICES)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    with sqlite3.connect(store.path) as db:
        db.row_factory = sqlite3.Row
        row = dict(db.execute("SELECT * FROM requests").fetchone())
    for field in usage.RECORD_COLUMNS:
        assert row[field] == getattr(record(), field), field
    assert row["ended"] == HOUR + 2.0
    assert row["cost"] == pytest.approx(0.00028)


def test_sums_by_every_group(store: UsageStore) -> None:
    store.know({("chute", "c-1"): "Org/M", ("key", "k1"): "laptop"})
    store.add([record(), record(first=0.5), record(status=429, error="rate_limited", key_id="k2")], PRICES)
    store.add([record(started=HOUR - 90000.0, chute_id="c-2")], PRICES)
    day = query(store.path, NOW)
    assert (day.total, day.sum.requests, day.sum.errors) == (1, 3, 1)
    (item,) = day.items
    assert (item.group, item.name) == ("c-1", "Org/M")
    assert (item.prompt_tokens, item.completion_tokens, item.cached_tokens) == (300, 60, 120)
    assert (item.ttft_p50_seconds, item.ttft_p95_seconds) == (0.25, 0.5)
    assert item.mean_seconds == pytest.approx(1.0)
    assert item.cost_usd == pytest.approx(3 * 0.00028)
    assert {i.name for i in query(store.path, NOW, "2d", "key").items} == {"laptop", "k2"}
    assert [i.group for i in query(store.path, NOW, "2d", "status").items] == ["200", "429"]
    hours = query(store.path, NOW, "2d", "hour")
    assert [i.requests for i in hours.items] == [3, 1], "latest first"
    assert [len(i.name) for i in query(store.path, NOW, "2d", "day").items] == [10, 10]
    assert query(store.path, NOW, "2d", "day").items[0].ttft_p50_seconds == 0.25
    assert query(store.path, NOW, chute="org/m").sum.requests == 3
    assert query(store.path, NOW, chute="c-1", key="laptop").sum.requests == 2
    second = query(store.path, NOW, "2d", "chute", page=1, limit=1)
    assert (second.total, [i.group for i in second.items]) == (2, ["c-2"])
    assert second.sum.requests == 4, "the sum is of all pages"


def test_a_window_that_begins_within_an_hour_counts_what_ended_in_it(store: UsageStore) -> None:
    store.add([record(started=HOUR + at) for at in (0.0, 100.0, 200.0)], {})
    assert query(store.path, NOW, "450s").sum.requests == 1
    assert query(store.path, NOW, "10m").sum.requests == 3
    assert query(store.path, HOUR + 4000.0, "1h").sum.requests == 0


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"since": "yesterday"}, UsageError),
        ({"by": "model"}, UsageError),
        ({"by": "chute; DROP TABLE hours"}, UsageError),
        ({"limit": 0}, UsageError),
        ({"limit": 1001}, UsageError),
        ({"page": -1}, UsageError),
        ({"chute": "nobody"}, NotFound),
        ({"key": "c-1"}, NotFound),
    ],
)
def test_bad_questions(store: UsageStore, changes: dict, error: type[Exception]) -> None:
    store.know({("chute", "c-1"): "Org/M"})
    with pytest.raises(error) as caught:
        query(store.path, NOW, **changes)
    assert str(next(iter(changes.values()))) in str(caught.value)


def test_old_rows_go_and_their_sums_stay(store: UsageStore, tmp_path: Path) -> None:
    old = [record(started=HOUR - 40 * 86400.0 + number) for number in range(50)]
    store.add(old, PRICES)
    store.add([record(), record()], PRICES)
    assert store.prune(NOW) == 50
    assert store.prune(NOW) == 0
    assert count(store) == 2
    assert query(store.path, NOW, "60d").sum.requests == 52
    assert query(store.path, NOW, "60d").sum.cost_usd == pytest.approx(52 * 0.00028)
    # A window that begins within an hour whose rows are gone gets the whole hour, and says so.
    inside = query(store.path, HOUR - 40 * 86400.0 + 20 + 86400, "1d")
    assert (inside.since, inside.sum.requests) == (HOUR - 40 * 86400.0, 52)


def test_too_many_rows_go_from_the_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "DROPPED_AT_ONCE", 30)
    store = UsageStore(tmp_path / "usage.db", rows=100)
    store.add([record(request_id=str(number)) for number in range(150)], {})
    assert [store.prune(NOW), store.prune(NOW), store.prune(NOW)] == [30, 20, 0]
    with sqlite3.connect(store.path) as db:
        assert db.execute("SELECT min(id), count(*) FROM requests").fetchone() == (51, 100)
    assert query(store.path, NOW).sum.requests == 150
    store.close()
    again = UsageStore(tmp_path / "usage.db", rows=100)
    again.add([record()], {})
    assert again.prune(NOW) == 1


def test_nothing_to_prune_and_nothing_to_ask(store: UsageStore) -> None:
    assert store.prune(NOW) == 0
    view = query(store.path, NOW)
    assert (view.items, view.sum.requests, view.sum.mean_seconds) == ([], 0, 0.0)
    assert last_use(store.path) == {}


def test_a_batch_is_kept_whole_or_not_at_all(store: UsageStore) -> None:
    with pytest.raises(sqlite3.Error):
        store.add([record(), record(request_id=None)], {})
    assert count(store) == 0
    assert count(store, "hours") == 0
    store.add([record()], {})
    assert count(store) == 1


def test_a_keys_last_use(store: UsageStore) -> None:
    store.add([record(), record(key_id="", status=401, chute_id="", instance_id="")], {})
    store.add([record(started=HOUR + 50.0)], {})
    store.add([record(started=HOUR + 20.0)], {})
    assert last_use(store.path) == {"k1": HOUR + 51.0}


def test_a_newer_or_foreign_file_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "newer.db") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ChutesError, match="newer chutes"):
        UsageStore(tmp_path / "newer.db")
    (tmp_path / "foreign.db").write_bytes(b"not a database" * 100)
    with pytest.raises(ChutesError, match="cannot be used"):
        UsageStore(tmp_path / "foreign.db")
