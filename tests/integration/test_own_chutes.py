"""Chutes of an author's own on a real platform: deployed, called in every way, fed what they must refuse."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.platform_kit import PlatformKit, gone, platform, port_for_test, until

CHUTE = Path(__file__).with_name("own_chute.py")
NAME = "Mine"
SLUG = "tester-mine"


def project(directory: Path) -> None:
    shutil.copy(CHUTE, directory / "mine.py")
    package = directory / "lib_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "words.py").write_text(
        "from pathlib import Path\n"
        "def greeting(name):\n"
        "    return Path(__file__).with_name('hello.txt').read_text().strip() + ' ' + name\n"
    )
    (package / "hello.txt").write_text("hello\n")
    (package / ".env").write_text("PASSWORD=not-to-travel\n")


class Client:
    """Asks as curl would."""

    def __init__(self, kit: PlatformKit, key: str) -> None:
        self.kit, self.key = kit, key

    def __call__(
        self, method: str, path: str, body: Any = None, key: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.kit.port, timeout=60)
        try:
            sent = {"Authorization": f"Bearer {self.key if key is None else key}", **headers}
            if body is not None:
                sent["Content-Type"] = "application/json"
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, body: Any = None) -> Any:
        status, _, text = self(method, path, body)
        assert status == 200, text
        return json.loads(text)


@pytest.fixture(scope="module")
def kit(tmp_path_factory) -> Iterator[PlatformKit]:
    directory = tmp_path_factory.mktemp("own")
    project(directory)
    with platform(directory) as kit:
        kit.environment["CHUTES_STARTUP_SECONDS"] = "8"
        said = kit.run("secrets", "create", "--purpose", NAME, "--key", "MY_TOKEN", "--value", "tok-one")
        assert "tok-one" not in said.stdout + said.stderr
        port = str(port_for_test())
        control(kit, "POST", "/secrets/", {"purpose": NAME, "key": "RELAY_PORT", "value": port})
        control(kit, "POST", "/secrets/", {"key": "FOR_ALL", "value": "everybody's"})
        deployed = kit.run("deploy", "mine:chute", "--yes")
        assert "lib_of_mine/hello.txt" in deployed.stderr
        assert "Not sent, as they look like secrets: lib_of_mine/.env" in deployed.stderr
        assert f"/{SLUG}/docs" in deployed.stderr
        yield kit


def control(kit: PlatformKit, method: str, path: str, body: Any = None) -> Any:
    """The control API, as the command line asks it: a process less each time."""
    document = kit.running()
    assert document is not None
    request = urllib.request.Request(
        document["control_url"] + path,
        None if body is None else json.dumps(body).encode(),
        {"Authorization": f"Bearer {document['token']}", "Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        text = response.read().decode()
    return json.loads(text) if "json" in response.headers["content-type"] else text


def chute(kit: PlatformKit, name: str = NAME) -> dict[str, Any]:
    return control(kit, "GET", f"/chutes/{name}")


@pytest.fixture(scope="module")
def ask(kit) -> Client:
    return Client(kit, kit.key("own"))


def test_json_in_and_out(ask):
    assert ask.json("POST", f"/{SLUG}/greet", {"name": "Ada", "times": 2}) == {"said": ["hello Ada"] * 2}
    assert ask("POST", "/greet", {"name": "Ada"}, Host=f"{SLUG}.example.org")[0] == 200
    assert ask("POST", f"/{SLUG}/greet", {"name": "Ada"}, key="cpk_wrong")[0] == 401


def test_get_and_hooks(ask):
    assert ask.json("GET", f"/{SLUG}/state") == {"order": ["first", "second"]}
    before = ask.json("GET", f"/{SLUG}/state?part=ticks")["ticks"]
    until(lambda: ask.json("GET", f"/{SLUG}/state?part=ticks")["ticks"] > before)
    status, headers, _ = ask("POST", f"/{SLUG}/state", {})
    assert (status, headers["allow"]) == (405, "GET")


def test_streams(ask):
    status, headers, text = ask("POST", f"/{SLUG}/count", {"n": 3})
    assert (status, text) == (200, b"".join(b'data: {"i": %d}\n\n' % i for i in range(3)))
    assert headers["content-type"].startswith("text/event-stream")


def test_an_image(ask):
    status, headers, image = ask("POST", f"/{SLUG}/square", {"size": 7})
    assert (status, headers["content-type"]) == (200, "image/png")
    assert struct.unpack(">II", image[16:24]) == (7, 7)


def test_a_passthrough(ask):
    relayed = ask.json("POST", f"/{SLUG}/relay", {"a": 1})
    assert relayed == {"relayed": {"a": 1}, "path": "/inner/answer"}
    status, _, text = ask("POST", f"/{SLUG}/relay", {"be": "teapot"})
    assert status == 418
    assert json.loads(text)["detail"]["relayed"] == {"be": "teapot"}


def test_an_openai_path_by_model_name(ask):
    body = {"model": NAME.lower(), "stream": False, "messages": [{"role": "user", "content": "shout"}]}
    answer = ask.json("POST", "/v1/chat/completions", body)
    assert answer["choices"][0]["message"]["content"] == "SHOUT"
    listed = ask.json("GET", "/v1/models")["data"]
    assert [model["owned_by"] for model in listed if model["id"] == NAME] == ["python"]


def test_pages(ask):
    status, headers, page = ask("GET", f"/{SLUG}/docs", key="")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"openapi.json" in page
    assert b"://" not in page.replace(b"blob://", b"")  # usable without the internet
    assert ask("GET", f"/{SLUG}/openapi.json", key="")[0] == 401
    document = ask.json("GET", f"/{SLUG}/openapi.json")
    greet = document["paths"]["/greet"]["post"]
    content = greet["requestBody"]["content"]["application/json"]
    asked = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    assert asked["properties"]["times"]["maximum"] == 5
    assert list(content["x-minimal-schema"]["properties"]) == ["name"]
    assert greet["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["said"]
    assert document["paths"]["/square"]["post"]["responses"]["200"]["content"]["image/png"]
    assert [p["name"] for p in document["paths"]["/state"]["get"]["parameters"]] == ["part"]


def test_bad_input_names_the_field(ask):
    for body, field in (({"times": 2}, "name"), ({"name": "A", "times": 9}, "times"), ([], None)):
        status, _, text = ask("POST", f"/{SLUG}/greet", body)
        assert (status, json.loads(text)["error"]["param"]) == (400, field)
    status, _, text = ask("POST", f"/{SLUG}/nowhere", {})
    assert status == 404
    assert b"/greet" in text


def test_an_exception_stays_in_the_log(kit, ask):
    status, headers, text = ask("POST", f"/{SLUG}/boom", {})
    assert status == 500
    assert b"private matters" not in text
    assert b"Traceback" not in text
    id_ = headers["x-request-id"]
    assert id_ in json.loads(text)["error"]["message"]
    log = control(kit, "GET", f"/chutes/{NAME}/logs")
    assert f"(id {id_})" in log
    assert "ValueError: private matters of the author" in log.partition(id_)[2]


def test_a_generator_that_dies(ask):
    _, _, events = ask("POST", f"/{SLUG}/dies", {})
    first, second, rest = events.decode().split("\n\n")
    assert (first, rest) == ('data: {"i": 0}', "")
    assert json.loads(second.removeprefix("data: "))["error"]["code"] == "cord_failed"
    _, _, text = ask("POST", f"/{SLUG}/lines", {"n": 2})
    *items, error = [json.loads(line) for line in text.splitlines()]
    assert items == [{"i": 0}, {"i": 1}]
    assert error["error"]["code"] == "cord_failed"
    assert b"private matters" not in events + text
    # Among samples of sound an error would be heard as one: the answer breaks off instead.
    with pytest.raises(http.client.IncompleteRead):
        ask("POST", f"/{SLUG}/sound", {})


def test_health_while_code_blocks(kit, ask):
    naps = [
        subprocess.Popen(
            [sys.executable, "-c",
             "import urllib.request as u,sys;"
             "u.urlopen(u.Request(sys.argv[1],b'{\"seconds\": 3}',{'Authorization':sys.argv[2]})).read()",
             f"{kit.url}/{SLUG}/nap", f"Bearer {ask.key}"],
        ) for _ in range(4)
    ]  # fmt: skip
    try:
        began = time.monotonic()
        port = chute(kit)["instance"]["port"]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()
        assert ask.json("POST", f"/{SLUG}/greet", {"name": "B"}) == {"said": ["hello B"]}
        assert any(nap.poll() is None for nap in naps) or time.monotonic() - began > 3
        bare = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        bare.request("POST", "/greet", "{}")
        assert bare.getresponse().status == 401  # not without the instance's own key
        bare.close()
    finally:
        assert [nap.wait(30) for nap in naps] == [0] * 4


def test_calls_from_python(kit, ask):
    program = (
        "import asyncio, json, mine\n"
        "async def main():\n"
        "    said = await mine.greet(mine.Asked(name='Py'))\n"
        "    items = [item async for item in mine.count(3)]\n"
        "    image = await mine.square(size=3)\n"
        "    relayed = await mine.relay({'b': 2})\n"
        "    print(json.dumps([type(said).__name__, said.said, items, len(image), relayed]))\n"
        "    try:\n"
        "        await mine.boom()\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n"
        "asyncio.run(main())\n"
    )
    env = {**kit.environment, "CHUTES_API_KEY": ask.key, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=kit.directory,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    kind, said, items, size, relayed = json.loads(first)
    assert (kind, said, items) == ("Greeted", ["hello Py"], [{"i": 0}, {"i": 1}, {"i": 2}])
    assert size > 60
    assert relayed["relayed"] == {"b": 2}
    assert second.startswith("ChutesError Error invoking boom")


def test_a_key_for_another_chute_cannot_call(kit, ask):
    admin = kit.run("keys", "create", "--admin", "--name", "boss").stdout.strip()
    uid = chute(kit)["chute_id"]
    assert ask("POST", f"/chutes/{uid}/greet", {"name": "A"})[0] == 200
    assert ask("POST", f"/chutes/{uid}/sleep", {})[0] == 403  # the platform's, not a function's
    assert ask("GET", f"/chutes/{uid}", key=admin)[0] == 200


def test_secrets(kit, ask):
    assert ask.json("POST", f"/{SLUG}/secret", {}) == {
        "MY_TOKEN": "tok-one", "CHUTES_INSTANCE_KEY": None, "FOR_ALL": "everybody's",
    }  # fmt: skip
    listed = kit.run("secrets", "list", "--json").stdout
    assert {one["key"] for one in json.loads(listed)} == {"RELAY_PORT", "MY_TOKEN", "FOR_ALL"}
    assert "tok-one" not in listed + json.dumps(chute(kit))
    kit.run("secrets", "create", "--purpose", NAME, "--key", "MY_TOKEN", "--value", "x", code=1)
    other = ("secrets", "create", "--purpose", NAME, "--key", "MY_TOKEN", "--replace", "--restart")
    said = kit.run(*other, "--value", "tok-two").stderr
    assert f"{NAME} is being restarted" in said
    # The request waits for the instance that has the new value, or meets the old one on its way out.
    until(lambda: ask.json("POST", f"/{SLUG}/secret", {})["MY_TOKEN"] == "tok-two", 60)
    kit.run("secrets", "create", "--key", "LD_PRELOAD", "--value", "/x.so", code=2)
    for path in (kit.home / "chutes.db", *kit.home.glob("chutes.db-*")):
        assert path.stat().st_mode & 0o077 == 0
    logs = "".join(
        path.read_text(errors="replace") for path in (kit.home / "logs").rglob("*") if path.is_file()
    )
    assert "tok-one" not in logs


def test_a_job_with_files(kit, tmp_path):
    ran = json.loads(
        kit.run("jobs", "run", NAME, "make", "word=ab", "n=4", "--wait", "--json", timeout=90).stdout
    )
    assert ran["status"] == "complete", ran
    (port,) = ran["ports"]
    assert ran["result"] == {"n": 4, "port": port["number"], "token": "tok-two"}
    assert port["port"] == 8888
    assert [(f["path"], f["size"]) for f in ran["files"]] == [(f"deep/{i}.txt", 2 * i) for i in range(4)]
    kit.run("jobs", "download", ran["job_id"], "--to", str(tmp_path))
    assert (tmp_path / "deep" / "3.txt").read_text() == "ababab"
    assert not (tmp_path / "link").exists()
    assert "made 4 of ['first', 'second']" in kit.run("jobs", "logs", ran["job_id"]).stdout
    (tmp_path / "deep" / "3.txt").write_text("mine")
    (tmp_path / "deep" / "0.txt").unlink()
    again = kit.run("jobs", "download", ran["job_id"], "--to", str(tmp_path), code=1)
    assert "is there already; nothing was downloaded" in again.stderr
    assert not (tmp_path / "deep" / "0.txt").exists()
    kit.run("jobs", "download", ran["job_id"], "deep/3.txt", "--to", str(tmp_path), "--force")
    assert (tmp_path / "deep" / "3.txt").read_text() == "ababab"
    missing = kit.run("jobs", "download", ran["job_id"], "link", code=1)
    assert "left no file" in missing.stderr


def test_jobs_that_fail_and_jobs_that_are_stopped(kit):
    failed = kit.run("jobs", "run", NAME, "fails", "--wait", "--json", code=1, timeout=90)
    ran = json.loads(failed.stdout)
    assert ran["status"] == "error"
    assert ran["detail"].startswith("no such thing\nTraceback")
    late = kit.run("jobs", "run", NAME, "slow", "--wait", "--json", code=1, timeout=90)
    assert json.loads(late.stdout)["status"] == "timeout"
    unknown = kit.run("jobs", "run", NAME, "nothing", code=1)
    assert "Its jobs: make, slow, fails, stubborn, naughty, misnamed, verbose" in unknown.stderr
    began = control(kit, "POST", f"/chutes/{NAME}/jobs/stubborn", {})["job_id"]
    output = kit.home / "jobs" / began / "work" / "output"
    until((output / "began").exists, 30)
    kit.run("jobs", "cancel", began)
    stopped = until(lambda: (one := control(kit, "GET", f"/jobs/{began}"))["status"] != "running" and one, 40)
    assert stopped["status"] in ("cancelled", "complete")  # it noticed and ended by itself
    assert "noticed" in [file["path"] for file in stopped["files"]]


def test_a_job_has_no_hand_outside_its_directory(kit, tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    ran = control(kit, "POST", f"/chutes/{NAME}/jobs/naughty", {"target": str(tmp_path)})["job_id"]
    ended = until(lambda: (one := control(kit, "GET", f"/jobs/{ran}"))["ended_at"] and one, 40)
    assert (ended["status"], ended["files"]) == ("error", [])
    assert "replaced its output directory by a link" in ended["detail"]
    assert victim.read_text() == "precious"


def test_a_job_that_leaves_what_cannot_be_recorded_is_over_all_the_same(kit):
    failed = kit.run("jobs", "run", NAME, "misnamed", "--wait", "--json", code=1, timeout=60)
    ran = json.loads(failed.stdout)
    assert ran["status"] == "error"
    assert "What the job left cannot be read" in ran["detail"]


def test_a_result_is_bounded_and_not_in_the_list(kit):
    for around, why in (("false", "write it to output_dir"), ("true", "status 3")):
        failed = kit.run(
            *("jobs", "run", NAME, "verbose", f"around={around}", "--wait", "--json"), code=1, timeout=60
        )
        ran = json.loads(failed.stdout)
        assert (ran["status"], ran["result"], ran["args"]) == ("error", None, {"around": around == "true"})
        assert why in ran["detail"]
    listed = {one["job_id"]: one for one in control(kit, "GET", "/jobs/")}
    assert listed[ran["job_id"]]["args"] == {}


def test_new_code_is_a_new_version(kit, ask):
    before = chute(kit)["instance"]
    (kit.directory / "lib_of_mine" / "hello.txt").write_text("good day\n")
    kit.run("deploy", "mine:chute", "--yes")
    assert chute(kit)["version"] != before["version"]
    assert ask.json("POST", f"/{SLUG}/greet", {"name": "C"}) == {"said": ["good day C"]}
    log = (kit.home / "logs" / "instances" / f"{before['instance_id']}.log").read_text()
    assert "the shutdown hook ran" in log
    again = kit.run("deploy", "mine:chute", "--yes")
    assert "in this very version already" in again.stderr


def test_a_version_that_fails_gives_its_place_back(kit, ask):
    before = chute(kit)
    file = kit.directory / "mine.py"
    good = file.read_text()
    file.write_text(f"{good}\n\n@chute.on_startup()\ndef broken(self):\n    raise ValueError('a bad day')\n")
    try:
        failed = kit.run("deploy", "mine:chute", "--yes", code=1)
    finally:
        file.write_text(good)
    assert "startup hook 'broken' raised ValueError: a bad day" in failed.stderr
    assert "The version before it is started again" in failed.stderr
    assert ask.json("POST", f"/{SLUG}/greet", {"name": "D"}) == {"said": ["good day D"]}  # waits for it
    now = chute(kit)
    assert now["version"] == before["version"] != now["undone"]
    shown = kit.run("ps").stdout
    assert SLUG in shown
    assert f"Version {now['undone'][:8]}, deployed last, failed; this is the one before it." in shown


BAD = {
    "raises": "@chute.on_startup()\ndef load(self):\n    raise ValueError('no weights here')\n",
    "hangs": "import time\n@chute.on_startup()\nasync def waits(self):\n    time.sleep(600)\n",
}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("raises", "startup hook 'load' raised ValueError: no weights here"),
        ("hangs", "startup hook 'waits' did not end within 8 s"),
    ],
)
def test_a_startup_that_fails(kit, kind, said):
    text = "from chutes.chute import Chute\nchute = Chute('tester', 'bad-{}', 'i')\n{}"
    cord = "@chute.cord(public_api_path='/x')\ndef x(self): ...\n"
    (kit.directory / f"bad_{kind}.py").write_text(text.format(kind, BAD[kind]) + cord)
    failed = kit.run("deploy", f"bad_{kind}:chute", "--yes", code=1)
    assert said in failed.stderr
    view = chute(kit, f"bad-{kind}")
    assert (view["phase"], view["given_up"]) == ("failed", True)
    assert said in view["instance"]["reason"]
    log = control(kit, "GET", f"/chutes/bad-{kind}/logs")
    assert f'bad_{kind}.py", line ' in log  # where it was
    control(kit, "DELETE", f"/chutes/bad-{kind}")


@pytest.mark.parametrize(
    ("cords", "said"),
    [
        (
            "@chute.cord(path='x')\ndef a(self): ...\n@chute.cord(path='x')\ndef b(self): ...\n",
            "have the path",
        ),
        (
            "@chute.cord(public_api_path='/x')\ndef a(self): ...\n"
            "@chute.cord(public_api_path='/x')\ndef b(self): ...\n",
            "both answer POST /x",
        ),
        ("@chute.cord(public_api_path='/x')\ndef sleep(self): ...\n", "the platform's own"),
    ],
)
def test_cords_in_each_others_way(kit, cords, said):
    (kit.directory / "crossed.py").write_text(
        f"from chutes.chute import Chute\nchute = Chute('tester', 'crossed', 'i')\n{cords}"
    )
    assert said in kit.run("deploy", "crossed:chute", "--yes", code=2).stderr


def test_an_id_of_somebody_elses_is_refused(kit):
    for uid in ("../../x", chute(kit)["chute_id"]):
        spec = {"uid": uid, "username": "tester", "name": "other"}
        for path in ("/chutes/", "/chutes/?dry_run=true"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                control(kit, "POST", path, {"spec": spec})
            with refused.value as answer:
                assert answer.status == 400
                assert "says that its uid is" in answer.read().decode()


def test_a_platform_that_dies_leaves_a_lost_run_and_no_process(kit):
    """Last: it takes the platform down."""
    began = control(kit, "POST", f"/chutes/{NAME}/jobs/stubborn", {})["job_id"]
    until((kit.home / "jobs" / began / "work" / "output" / "began").exists, 30)
    processes = kit.engine_tree()
    kit.control().send_signal(signal.SIGKILL)
    until(lambda: gone(*processes), 60)
    kit.run("keys", "create", "--name", "afterwards")  # starts it again
    assert control(kit, "GET", f"/jobs/{began}")["status"] == "lost"
    until(lambda: chute(kit)["phase"] == "ready", 60)
