"""Usage, limits, prices, aliases and metrics: workers' channel, control API, command line."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from chutes import config as settings
from chutes.config import Config
from chutes.control import workers
from chutes.control.platform import Platform
from chutes.control.usage import UsageStore
from chutes.control.usage_query import query
from chutes.wire import Upstream
from tests.integration.platform_kit import NAME, PlatformKit, platform, port_for_test, samples
from tests.unit.records import record

FAKE = Path(__file__).parent / "fake_worker.py"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A platform whose workers are fake ones."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(workers.sys, "executable", str(python))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return settings.load(
        {
            "CHUTES_HOME": str(tmp_path / "home"),
            "CHUTES_PORT": str(port_for_test()),
            "CHUTES_WORKERS": "2",
            "CHUTES_USERNAME": "tester",
        }
    )


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Platform]:
    made = Platform(config, Upstream("control", "127.0.0.1", 1, "token"))
    try:
        await made.start()
        yield made
    finally:
        await made.close()


async def test_what_workers_say_last_is_kept_when_the_platform_ends(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_WORKER", json.dumps({"records": 3000}))
    async with running(config) as made:
        rows = made.workers.pid_by_row()
        assert sorted(rows) == [0, 1]
    assert query(config.usage_database, time.time(), "1h").sum.requests == 2 * 2 * 3000
    lines = (config.logs / "access.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 2 * 3000
    assert json.loads(lines[-1])["request_id"] == "r2999"


async def test_a_message_that_is_none_does_no_harm(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FAKE_WORKER", json.dumps({"records": 1, "garbage": True}))
    async with running(config) as made:
        pids = made.workers.pids()
        await asyncio.sleep(0.3)
        assert made.workers.pids() == pids
    assert "cannot be understood" in caplog.text
    assert query(config.usage_database, time.time(), "1h").sum.requests == 4


async def greetings(made: Platform, count: int) -> dict[str, int]:
    """What workers found in their rows, once there are as many greetings as this."""
    deadline = time.monotonic() + 10
    found: dict[str, int] = {}
    while sum(found.values()) < count:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)
        with made.meter.lock:
            found = dict(made.meter.counts.chutes["c1"].instances) if made.meter.counts.chutes else {}
    return found


async def test_a_replaced_worker_gets_a_clean_row(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WORKER", json.dumps({"greet": True}))
    async with running(config) as made:
        await greetings(made, 2)
        assert made.workers.board.total(7) == 2
        os.kill(made.workers.pid_by_row()[0], signal.SIGKILL)
        found = await greetings(made, 3)
        assert made.workers.board.total(7) == 2
    assert found == {"row-0-saw-0": 2, "row-1-saw-0": 1}, "neither found what another had left"


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[PlatformKit]:
    with platform(tmp_path) as kit:
        kit.environment["CHUTES_METRICS_PORT"] = str(port_for_test())
        yield kit


def metrics(kit: PlatformKit) -> dict[str, float]:
    """The page of the metrics port, by series."""
    connection = http.client.HTTPConnection("127.0.0.1", int(kit.environment["CHUTES_METRICS_PORT"]))
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        page = response.read().decode()
        assert response.status == 200, page
        assert response.getheader("Content-Type", "").startswith("text/plain")
    finally:
        connection.close()
    return samples(page)


def test_prices_and_aliases_outlive_versions_and_restarts(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute())
    (chute,) = kit.json("ps")
    assert (chute["slug"], chute["price"], chute["aliases"]) == ("tester-tiny-model", None, [])

    assert "no price" in kit.run("price", NAME).stdout
    kit.run("price", NAME, "--prompt", "1", "--completion", "2", "--cached", "0.5")
    assert "$1 prompt, $0.5 cached prompt, $2 completion" in kit.run("price", NAME).stdout
    assert "must be from 0" in kit.run("price", NAME, "--prompt", "-1", "--completion", "1", code=2).stderr
    assert "both its parts" in kit.run("price", NAME, "--prompt", "1", code=2).stderr
    kit.run("alias", "set", "Fast", NAME)
    assert "a chute's own name" in kit.run("alias", "set", NAME, NAME, code=1).stderr
    assert "There is no chute" in kit.run("alias", "set", "x", "nobody", code=1).stderr
    kit.run("deploy", kit.chute("--max-model-len 64"))
    kit.run("down")
    kit.run("deploy", "tiny_model:chute")
    (chute,) = kit.json("ps")
    assert (chute["price"]["completion"], chute["aliases"]) == (2.0, ["fast"])
    assert "1/2" in kit.run("ps").stdout
    assert kit.json("alias", "list")[0]["chute_names"] == [NAME]

    kit.run("alias", "delete", "FAST")
    kit.run("alias", "delete", "fast", code=1)
    kit.run("price", NAME, "--free")
    assert kit.json("ps")[0]["price"] is None


def test_usage_and_metrics(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute())
    (chute,) = kit.json("ps")
    # What workers would have said, put where they would have had it put.
    store = UsageStore(kit.home / "usage.db")
    instance, now = chute["instance"]["instance_id"], time.time()
    (key,) = [kit.json("keys", "create", "ada")["api_key_id"]]
    store.add(
        [record(chute_id=chute["chute_id"], instance_id=instance, key_id=key, started=now)] * 3
        + [record(chute_id=chute["chute_id"], key_id=key, status=429, error="rate_limited", started=now)],
        {},
    )
    store.close()
    said = kit.run("usage").stdout.splitlines()
    assert said[1].split()[:3] == [NAME, "4", "1"]
    usage = kit.json("usage", "--by", "key", "--chute", NAME, "--key", "ada", "--since", "1h")
    assert (usage["items"][0]["name"], usage["sum"]["prompt_tokens"]) == ("ada", 400)
    assert [item["group"] for item in kit.json("usage", "--by", "status")["items"]] == ["200", "429"]
    assert "by is one of" in kit.run("usage", "--by", "model", code=2).stderr
    assert "Write a span" in kit.run("usage", "--since", "tuesday", code=2).stderr
    assert "Nothing is known of a chute" in kit.run("usage", "--chute", "nobody", code=1).stderr
    assert "ago" in kit.run("keys", "list").stdout.splitlines()[1]

    page = metrics(kit)
    labels = f'chute="{NAME}",instance="{instance}"'
    assert page[f"chutes_in_flight{{{labels}}}"] == 0
    assert page[f'chutes_instances{{chute="{NAME}",phase="ready"}}'] == 1
    of_engine = f'{{chute="{NAME}",engine="vllm",instance="{instance}"}}'
    assert page[f"chutes_engine_up{of_engine}"] == 1
    assert page[f"chutes_engine_generation_tokens_total{of_engine}"] == 12
    assert page['chutes_process_resident_bytes{process="worker-0"}'] > 1e6
    assert page["chutes_usage_lost_total"] == 0
    assert kit.ask(kit.key("scraper"), "/metrics")[0] in (401, 403, 404), "not for everybody"
    status, body = kit.ask(kit.json("keys", "create", "boss", "--admin")["secret_key"], "/metrics")
    assert status == 200
    assert b"chutes_engine_generation_tokens_total{" in body


def test_keys_with_limits(kit: PlatformKit) -> None:
    made = kit.json(
        "keys", "create", "ci", "--expires", "30d", "--requests-per-minute", "60",
        "--tokens-per-minute", "100000", "--concurrency", "4",
    )  # fmt: skip
    assert made["expires_at"] == pytest.approx(time.time() + 30 * 86400, abs=60)
    (key,) = kit.json("keys", "list")
    assert (key["requests_per_minute"], key["tokens_per_minute"], key["concurrency"]) == (60, 100000, 4)
    assert (key["last_used_at"], key["secret_key"]) == (None, None)
    listed = kit.run("keys", "list").stdout
    assert "60 requests/min, 100,000 tokens/min, 4 at once" in listed
    assert "never" in listed
    assert "not a point in time" in kit.run("keys", "create", "x", "--expires", "soon", code=2).stderr
    assert "expired already" in kit.run("keys", "create", "x", "--expires", "2020-01-01", code=2).stderr
    assert kit.run("keys", "create", "x", "--concurrency", "0", code=2).returncode == 2
    with sqlite3.connect(kit.home / "chutes.db") as db:
        assert db.execute("SELECT count(*) FROM api_keys").fetchone() == (1,)


def test_a_metrics_port_that_is_taken_is_named(kit: PlatformKit) -> None:
    import socket

    with socket.create_server(("127.0.0.1", int(kit.environment["CHUTES_METRICS_PORT"]))):
        assert "CHUTES_METRICS_PORT" in kit.run("keys", "create", "x", code=1).stderr
