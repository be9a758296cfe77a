"""Keys, store, routes and settings."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from chutes import config as settings
from chutes.chute.spec import CordSpec, EngineSpec
from chutes.control import keys
from chutes.control.deploying import draft
from chutes.control.reconcile import Deployed, World, step
from chutes.control.routes import table
from chutes.control.store import SCHEMA_VERSION, Store
from chutes.engine.contract import Endpoint
from chutes.engine.diagnosis import Reason
from chutes.engine.lifecycle import Phase
from chutes.exception import AlreadyExists, ChutesError, InvalidSpec, NotConfigured
from chutes.fleet.base import Report
from chutes.wire import Upstream, key_digest
from tests.unit.test_reconcile import deployment

CONTROL = Upstream("control", "127.0.0.1", 1, "token")
SLOTS = {"i1": 5}


def test_a_key_has_the_published_form_and_only_its_digest_is_kept() -> None:
    stored, text = keys.create("me", "laptop", 5.0)
    assert keys.PATTERN.fullmatch(text)
    assert len(text) == 102
    assert stored.digest == key_digest(text)
    secret = text.rsplit(".", 1)[1]
    assert secret not in repr(stored)
    assert "digest" not in stored.model_dump()
    assert text.split(".")[1] == keys.create("me", "other", 5.0)[1].split(".")[1], "same user, same middle"


@pytest.mark.parametrize("name", ["", " x", "x" * 25, "x\n"])
def test_a_key_needs_a_name(name: str) -> None:
    with pytest.raises(InvalidSpec):
        keys.create("me", name, 0.0)


def test_the_store_gives_back_what_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "home" / "chutes.db"
    store = Store(path)
    key, _ = keys.create("me", "k", 1.0, admin=True, chute_ids=["id-m"])
    store.save_key(key)
    store.save_deployment(deployment())
    store.save_deployment(deployment(version="v2"))
    store.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Store(path)
    assert again.api_keys() == [key]
    assert again.deployments() == [deployment(version="v2")]
    again.delete_key(key.api_key_id)
    again.delete_deployment("id-m")
    assert again.api_keys() == []
    assert again.deployments() == []


def test_two_keys_of_one_name(tmp_path: Path) -> None:
    store = Store(tmp_path / "chutes.db")
    store.save_key(keys.create("me", "k", 1.0)[0])
    with pytest.raises(AlreadyExists, match="'k'"):
        store.save_key(keys.create("me", "k", 1.0)[0])


def test_a_newer_or_foreign_database_is_left_alone(tmp_path: Path) -> None:
    newer = tmp_path / "newer.db"
    with sqlite3.connect(newer) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(ChutesError, match="newer chutes"):
        Store(newer)
    foreign = tmp_path / "foreign.db"
    foreign.write_bytes(b"not a database" * 100)
    with pytest.raises(ChutesError, match="cannot be used"):
        Store(foreign)


def world_with(*reports: Report) -> World:
    chute = deployment()
    chute.spec.cords.append(
        CordSpec(
            function="chat",
            path="/chat",
            passthrough=True,
            passthrough_path="/v1/chat/completions",
            public_api_path="/v1/chat/completions",
        )
    )
    chute.spec.cords.append(
        CordSpec(function="models", path="/models", public_api_path="/v1/models", public_api_method="GET")
    )
    world, _ = step(World(), Deployed(chute), 0.0, lambda: "i1")
    for report in reports:
        world, _ = step(world, report, 1.0, lambda: "i2")
    return world


def test_only_ready_instances_are_in_the_table() -> None:
    route = table(world_with(), [], CONTROL, {}, SLOTS).routes[0]
    assert route.upstreams == []
    assert "starting (preparing)" in route.detail
    assert route.paths == {"/v1/chat/completions": "/v1/chat/completions"}
    ready = Report("i1", Phase.READY, endpoint=Endpoint("127.0.0.1", 20001, "secret"), max_model_len=8192)
    route = table(world_with(ready), [], CONTROL, {}, SLOTS).routes[0]
    assert route.upstreams == [Upstream("i1", "127.0.0.1", 20001, "secret", slot=5)]
    assert route.max_model_len == 8192
    route = table(world_with(ready, Report("i1", Phase.DRAINING)), [], CONTROL, {}, SLOTS).routes[0]
    assert route.upstreams == []


def test_no_cord_takes_the_platforms_own_paths() -> None:
    chute = deployment()
    for path in ("/v1/models", "/health", "/chutes/x", "/v1/chat/completions"):
        name = path.replace("/", "_")
        chute.spec.cords.append(CordSpec(function=name, path=path, passthrough=True, public_api_path=path))
    world, _ = step(World(), Deployed(chute), 0.0, lambda: "i1")
    assert list(table(world, [], CONTROL, {}, SLOTS).routes[0].paths) == ["/v1/chat/completions"]


def test_progress_alone_does_not_change_the_table() -> None:
    first = table(world_with(Report("i1", Phase.FETCHING, "a", 1, 10)), [], CONTROL, {}, SLOTS)
    second = table(world_with(Report("i1", Phase.FETCHING, "b", 2, 10)), [], CONTROL, {}, SLOTS)
    assert first == second


def test_a_failure_is_told_to_clients() -> None:
    route = table(
        world_with(Report("i1", Phase.FAILED, reason=Reason("No room.", fatal=True))),
        [],
        CONTROL,
        {},
        SLOTS,
    ).routes[0]
    assert "has failed: No room." in route.detail
    assert route.phase == "failed"


def test_a_failure_that_is_tried_again_is_worth_waiting_for() -> None:
    crashed = world_with(Report("i1", Phase.FAILED, reason=Reason("It crashed.", fatal=False)))
    assert table(crashed, [], CONTROL, {}, SLOTS).routes[0].phase == "waiting"


def test_settings_environment_beats_file_beats_default(tmp_path: Path) -> None:
    (tmp_path / "config.ini").write_text("[serve]\nport = 9001\nworkers = 3\n[auth]\nusername = ada_l\n")
    config = settings.load({"CHUTES_HOME": str(tmp_path), "CHUTES_WORKERS": "2"})
    assert (config.port, config.workers, config.username) == (9001, 2, "ada_l")
    assert config.host == "127.0.0.1"
    assert config.cache == tmp_path / "cache"
    assert settings.load({"CHUTES_HOME": str(tmp_path), "CHUTES_CACHE": "/elsewhere"}).cache == Path(
        "/elsewhere"
    )


def test_settings_survive_being_handed_to_a_child(tmp_path: Path) -> None:
    config = settings.load({"CHUTES_HOME": str(tmp_path), "CHUTES_PORT": "9002", "CHUTES_USERNAME": "ada"})
    assert settings.load(config.environment()) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [("CHUTES_PORT", "80a"), ("CHUTES_PORT", "0"), ("CHUTES_WORKERS", "0"), ("CHUTES_USERNAME", "a b")],
)
def test_a_bad_setting_names_itself(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(NotConfigured) as caught:
        settings.load({"CHUTES_HOME": str(tmp_path), name: value})
    assert name in caught.value.fix


def test_a_broken_settings_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.ini").write_text("no section\n")
    with pytest.raises(NotConfigured, match=r"config\.ini"):
        settings.load({"CHUTES_HOME": str(tmp_path)})


def test_a_model_of_a_known_family_calls_tools_and_thinks_without_a_flag(tmp_path: Path) -> None:
    directory = tmp_path / "Qwen3-4B"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}')
    (directory / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    cord = CordSpec(function="chat", path="/c", passthrough=True, public_api_path="/v1/chat/completions")
    spec = deployment().spec.model_copy(
        update={"engine": EngineSpec(name="vllm", model=str(directory)), "cords": [cord]}
    )
    worked_out = draft(spec, settings.load({"CHUTES_HOME": str(tmp_path)}))
    flags = " ".join(worked_out.plan.engine_args)
    assert "--tool-call-parser hermes --enable-auto-tool-choice --reasoning-parser qwen3" in flags
    assert any("of the family qwen3" in reason for reason in worked_out.plan.reasons)
    world, _ = step(World(), Deployed(worked_out.deployment(1.0)), 1.0, lambda: "i")
    route = table(world, [], CONTROL, {}, {}).routes[0]
    assert route.capabilities == ["chat", "json_schema", "tools", "reasoning"]
