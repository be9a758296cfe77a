"""Slugs, aliases, prices, slots on the board, points in time, keys with limits, an older database."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from chutes.control import keys, listing
from chutes.control.keys import Limits
from chutes.control.listing import Listing
from chutes.control.routes import table
from chutes.control.slots import Slots, for_instances, for_keys
from chutes.control.store import Store
from chutes.engine.contract import Endpoint
from chutes.engine.lifecycle import Phase
from chutes.exception import InvalidSpec, UsageError
from chutes.fleet.base import Report
from chutes.util import times
from chutes.wire import Price
from tests.unit.test_control_parts import CONTROL, SLOTS, world_with
from tests.unit.test_reconcile import deployment


def test_slugs_have_the_published_form() -> None:
    assert listing.slug("ada", "HuggingFaceTB/SmolLM2-135M-Instruct", []) == (
        "ada-huggingfacetb-smollm2-135m-instruct"
    )
    assert listing.slug("ada_l", "Modèle  Ünï__x", []) == "ada-l-modele-uni-x"
    taken = listing.slug("ada", "m", [])
    again = listing.slug("ada", "m", [taken])
    assert again.startswith("ada-m-")
    assert len(again) == len("ada-m-") + 5
    assert listing.slug("日", "本", []) == "chute"


@given(st.text(max_size=200), st.text(max_size=200))
def test_a_slug_is_a_label_of_a_host_name(username: str, name: str) -> None:
    first = listing.slug(username, name, [])
    for slug in (first, listing.slug(username, name, [first])):
        assert 1 <= len(slug) <= 63
        assert slug.strip("-") == slug
        assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_aliases() -> None:
    assert listing.alias("Fast/Model_1.5") == "fast/model_1.5"
    for bad in ("", "a b", "a:b", "a,b", "é", "x" * 65, "a\n"):
        with pytest.raises(InvalidSpec):
            listing.alias(bad)


def test_prices() -> None:
    assert listing.price(0.2, 0.6) == Price(0.2, 0.6, 0.2)
    assert listing.price(0.2, 0.6, 0) == Price(0.2, 0.6, 0)
    for bad in (-1.0, float("nan"), float("inf"), 1e9):
        with pytest.raises(InvalidSpec, match="prompt price"):
            listing.price(bad, 0)


def test_a_slot_is_kept_for_life_and_given_out_again_late(caplog: pytest.LogCaptureFixture) -> None:
    slots = Slots("instance", 4, first=1)
    slots.keep(["a", "b"])
    assert slots.of == {"a": 1, "b": 2}
    slots.keep(["b", "c"])
    assert slots.of == {"b": 2, "c": 3}, "1 has just been freed and waits"
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            slots.keep(["b", "c", "d", "e"])
    assert slots.of == {"b": 2, "c": 3, "d": 1}
    assert caplog.text.count("instance e cannot be used: all 3 places") == 1
    slots.keep(["e"])
    assert slots.of == {"e": 2}
    assert for_instances().left == 1023
    assert for_keys().left == 4096


def test_the_table_shows_what_is_known_of_a_chute() -> None:
    ready = Report("i1", Phase.READY, endpoint=Endpoint("127.0.0.1", 20001, "secret"))
    known = {"id-m": Listing("me-m", Price(1, 2, 1), ["fast"])}
    (route,) = table(world_with(ready), [], CONTROL, known, SLOTS).routes
    assert (route.slug, route.price, route.aliases, route.concurrency) == (
        "me-m", Price(1, 2, 1), ["fast"], 1,
    )  # fmt: skip
    assert [upstream.slot for upstream in route.upstreams] == [5]
    assert table(world_with(ready), [], CONTROL, known, {}).routes[0].upstreams == []


def test_points_in_time() -> None:
    now = 1_800_000_000.0  # 2027-01-15 08:00 UTC
    assert times.before("24h", now) == now - 86400
    assert times.before("2027-01-01", now) == now - 14 * 86400 - 8 * 3600
    assert times.after("30d", now) == now + 30 * 86400
    assert times.after("2027-01-15", now) == now + 16 * 3600, "to the end of that day"
    assert times.after("2027-01-15T09:00", now) == now + 3600
    assert times.after("2027-01-15T09:00+01:00", now) == now
    for bad in ("", "d", "1y", "-1d", "2027-13-01", "soon", "9999-12-31", "0001-01-01", "9" * 9 + "d"):
        with pytest.raises(UsageError, match="not a point in time"):
            times.after(bad, now)


def test_a_key_with_limits_reaches_the_gateway() -> None:
    limits = Limits(expires_at=9.0, requests_per_minute=60, tokens_per_minute=1000, concurrency=2)
    stored, _ = keys.create("me", "k", 5.0, limits=limits)
    key = stored.for_gateway(slot=7)
    assert (key.expires, key.requests_per_minute, key.tokens_per_minute, key.concurrency, key.slot) == (
        9.0, 60, 1000, 2, 7,
    )  # fmt: skip
    assert stored.counted
    assert not keys.create("me", "k", 5.0, limits=Limits(expires_at=9.0))[0].counted
    with pytest.raises(InvalidSpec, match="expired already"):
        keys.create("me", "k", 10.0, limits=limits)
    for bad in (0, -1, 2**41):
        with pytest.raises(ValidationError):
            Limits(concurrency=bad)


def test_the_store_keeps_limits_prices_slugs_and_aliases(tmp_path: Path) -> None:
    store = Store(tmp_path / "chutes.db")
    key, _ = keys.create("me", "k", 1.0, limits=Limits(expires_at=9.0, tokens_per_minute=5))
    store.save_key(key)
    store.save_deployment(deployment())
    store.save_slug("id-m", "me-m")
    store.save_price("id-m", Price(1, 2, 0.5))
    store.save_alias("fast", "id-x")
    store.save_alias("fast", "id-m")
    store.close()
    again = Store(tmp_path / "chutes.db")
    assert again.api_keys() == [key]
    assert again.slugs() == {"id-m": "me-m"}
    assert again.prices() == {"id-m": Price(1, 2, 0.5)}
    assert again.aliases() == {"fast": "id-m"}
    again.save_price("id-m", None)
    assert again.prices() == {}
    again.save_price("id-m", Price(1))
    again.delete_deployment("id-m")
    assert (again.slugs(), again.prices()) == ({}, {})
    assert again.aliases() == {"fast": "id-m"}, "it waits for the chute to come back"
    again.delete_alias("fast")
    assert again.aliases() == {}


FIRST_FORMAT = """
CREATE TABLE deployments (chute_id TEXT PRIMARY KEY, name TEXT NOT NULL, document TEXT NOT NULL) STRICT;
CREATE TABLE api_keys (
    api_key_id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, digest TEXT NOT NULL UNIQUE,
    admin INTEGER NOT NULL, chute_ids TEXT, created_at REAL NOT NULL
) STRICT;
INSERT INTO api_keys VALUES ('0a', 'laptop', 'd1', 1, '["id-m"]', 5.0);
PRAGMA user_version = 1;
"""


def test_a_database_of_the_first_format_keeps_its_keys_and_deployments(tmp_path: Path) -> None:
    path = tmp_path / "chutes.db"
    with sqlite3.connect(path) as db:
        db.executescript(FIRST_FORMAT)
        db.execute("INSERT INTO deployments VALUES ('id-m', 'm', ?)", (deployment().model_dump_json(),))
    for _ in range(2):  # and again, now of today's
        store = Store(path)
        (key,) = store.api_keys()
        assert (key.name, key.digest, key.admin, key.chute_ids) == ("laptop", "d1", True, ["id-m"])
        assert (key.expires_at, key.requests_per_minute, key.counted) == (None, None, False)
        assert store.deployments() == [deployment()]
        assert store.slugs() == {}
        store.close()
