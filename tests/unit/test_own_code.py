"""An author's own code before it runs: its Image without containers, its devices, its routes, its secrets."""

from __future__ import annotations

import pytest

from chutes import wire
from chutes.board import Board
from chutes.chute import Chute, NodeSelector
from chutes.chute.openapi import document
from chutes.control import secrets
from chutes.control.listing import Listing
from chutes.control.own_code import TAKEN
from chutes.control.own_code import plan as plan_of
from chutes.control.reconcile import Deployment, World
from chutes.control.routes import table
from chutes.control.secrets import Secret
from chutes.engine.diagnosis import diagnose
from chutes.engine.python import Way, ways
from chutes.exception import InvalidSpec
from chutes.gateway.answers import Answer, Refusal
from chutes.gateway.http import parse_request_head
from chutes.gateway.orders import Order
from chutes.gateway.service import Service
from chutes.hardware import own_code, profiles
from chutes.hardware.devices import Gpu, Machine
from chutes.image import Image

GB = 10**9


class TestWays:
    @pytest.mark.parametrize(
        ("command", "pip"),
        [
            ("pip install numpy==2.0 'pillow>=10'", [["numpy==2.0", "pillow>=10"]]),
            ("pip3 install --no-cache-dir six && pip install --user seven", [["six"], ["seven"]]),
            ("python -m pip install -U six", [["-U", "six"]]),
            ("uv pip install --system --prerelease=allow six", [["--pre", "six"]]),
            ("python3 -m uv pip install six", [["six"]]),
            ("PIP_X=1 pip install six; rm -rf /root/.cache", [["six"]]),
            ("--mount=type=cache,target=/x pip install six", [["six"]]),
            ('["pip", "install", "six"]', [["six"]]),
            ("pip install torch --index-url https://example.org/whl", [["torch", "--index-url", "https://example.org/whl"]]),
            ("pip install --upgrade pip setuptools", []),
            ("pip install \\\n  six\npip install seven", [["six"], ["seven"]]),
        ],
    )  # fmt: skip
    def test_pip_steps(self, command, pip):
        found = ways(str(Image("me", "i", "1").run_command(command)))
        assert (found.pip, found.notes) == (pip, [])

    @pytest.mark.parametrize(
        ("command", "said"),
        [
            (
                "apt-get update && apt-get install -y ffmpeg git",
                "Debian packages are not installed: ffmpeg git",
            ),
            ("curl https://x | sh", "not run: curl https://x | sh"),
            ("pip install $(cat list)", "not run: pip install $(cat list)"),
            ("pip install .", "not run, as it needs what is only in the image: pip install ."),
            ("pip install -r /app/missing.txt", "not run, as it needs what is only in the image"),
            ("make all", "not run: make all"),
        ],
    )
    def test_what_cannot_be_honoured_is_said(self, command, said):
        found = ways(str(Image("me", "i", "1").run_command(command)))
        assert found.pip == []
        assert any(note.startswith(said) for note in found.notes), found.notes

    def test_the_rest_of_an_image(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "needs").mkdir()
        (tmp_path / "needs" / "all.txt").write_text("six\n")
        (tmp_path / "one.txt").write_text("six\n")
        image = (
            Image("me", "i", "1")
            .from_base("nvidia/cuda:12.8.1-devel-ubuntu24.04")
            .set_workdir("/app")
            .with_env("MODE", "fast and loose")
            .with_env("PATH", "/opt/x:$PATH")
            .add("one.txt", "one.txt")
            .add("needs", "/etc/needs")
            .run_command("pip install -r one.txt -c /etc/needs/all.txt")
            .apt_install("ffmpeg")
        )
        found = ways(str(image))
        assert found.pip == [["-r", "one.txt", "-c", "needs/all.txt"]]
        assert found.files == {"one.txt", "needs/all.txt"}
        assert found.variables == {"MODE": "fast and loose"}
        text = "\n".join(found.notes)
        for said in ("base image nvidia/cuda", "ENV PATH", "needs lies in the working", "ffmpeg"):
            assert said in text

    def test_an_image_that_is_only_named(self):
        assert ways("") == Way()


def gpu(index: int, free: int, name: str = "NVIDIA GeForce RTX 4090") -> Gpu:
    return Gpu(index, name, 25 * GB, free, (8, 9), f"GPU-{index}")


class TestDevices:
    def plan(self, selector: NodeSelector, *gpus: Gpu, taken: tuple[int, ...] = ()):
        return own_code.plan(selector, Machine(4, 8 * GB, 8 * GB, gpus), _shelf(), taken)

    def test_no_gpu(self):
        plan = self.plan(NodeSelector(gpu_count=8))
        assert (plan.accelerator, plan.fits, plan.gpus) == ("cpu", True, [])
        assert "CPU" in plan.reasons[0]

    def test_others_last_and_the_emptiest_first(self):
        cards = (gpu(0, 25 * GB), gpu(1, 20 * GB), gpu(2, 24 * GB))
        assert self.plan(NodeSelector(), *cards, taken=(0,)).gpus == [2]
        shared = self.plan(NodeSelector(gpu_count=3), *cards, taken=(0,))
        assert (shared.gpus, "another chute's too" in shared.reasons[-1]) == ([0, 1, 2], True)

    def test_what_the_selector_refuses(self):
        plan = self.plan(NodeSelector(min_vram_gb_per_gpu=80), gpu(0, 25 * GB))
        assert not plan.fits
        assert "GPU 0: 25 GB" in plan.problem


def _shelf() -> profiles.Profiles:
    from pathlib import Path

    return profiles.load(profiles.find(Path("/nonexistent"), None))


def chute() -> Chute:
    chute = Chute("tester", "Own", "i")

    @chute.cord(public_api_path="/say")
    def say(self, text: str) -> dict: ...

    @chute.cord(public_api_path="/say", public_api_method="GET")
    def said(self, n: int = 3) -> str: ...

    @chute.cord(path="/inner", public_api_path="/v1/chat/completions")
    def chat(self, args: dict) -> dict: ...

    @chute.cord(public_api_path="/chutes")
    def chutes(self) -> dict: ...

    return chute


class TestGateway:
    @pytest.fixture
    def service(self) -> Service:
        spec = chute().to_spec()
        plan = own_code.plan(NodeSelector(), Machine(4, 8 * GB, 8 * GB), _shelf())
        deployment = Deployment(spec=spec, source=None, plan=plan, version="v", created=1.0)
        made = table(
            World(deployments={spec.uid: deployment}),
            [wire.Key("1", wire.key_digest("all")), wire.Key("2", wire.key_digest("no"), chute_ids=[])],
            wire.Upstream("control", "127.0.0.1", 1, "sk"),
            {spec.uid: Listing("tester-own")},
            {},
        )
        self.id = spec.uid
        service = Service(1000, Board(Board.create(rows=1).fd, row=0))
        service.swap(made)
        return service

    def ask(self, service: Service, method: str, path: str, body: bytes = b"{}", key: str = "all"):
        bearer = f"\r\nAuthorization: Bearer {key}" if key else ""
        head = parse_request_head(f"{method} {path} HTTP/1.1\r\nHost: x{bearer}".encode())
        return service.serve(head, body if method == "POST" else b"", 0.0)

    @pytest.mark.parametrize(
        ("method", "path", "first"),
        [
            ("POST", "/tester-own/say", b"POST /say HTTP/1.1\r\n"),
            ("GET", "/tester-own/say?n=4", b"GET /say?n=4 HTTP/1.1\r\n"),
            ("POST", "/chutes/{id}/say", b"POST /-/call/say HTTP/1.1\r\n"),
            ("POST", "/chutes/{id}/inner", b"POST /-/call/inner HTTP/1.1\r\n"),
            ("GET", "/tester-own/openapi.json", b"GET /openapi.json HTTP/1.1\r\n"),
            ("POST", "/tester-own/chutes", b"POST /chutes HTTP/1.1\r\n"),
        ],
    )
    def test_reached(self, service, method, path, first):
        order = self.ask(service, method, path.format(id=self.id))
        assert isinstance(order, Order)
        assert order.head.startswith(first)
        assert (b"Content-Length" in order.head) is (method == "POST")
        assert order.repeatable is (method == "GET")

    def test_by_model_name_the_body_is_left_alone(self, service):
        body = b'{"model": "own", "stream": true, "messages": []}'
        order = self.ask(service, "POST", "/v1/chat/completions", body)
        assert isinstance(order, Order)
        assert order.head.startswith(b"POST /v1/chat/completions")
        assert b"stream_options" not in order.body
        assert b'"Own"' in order.body
        assert not order.repeatable

    @pytest.mark.parametrize(
        ("method", "path", "key", "status"),
        [
            ("DELETE", "/tester-own/say", "all", 405),
            ("GET", "/tester-own/v1/chat/completions", "all", 405),
            ("POST", "/tester-own/openapi.json", "all", 405),
            ("GET", "/tester-own/openapi.json", "", 401),
            ("POST", "/tester-own/nothing", "all", 404),
            ("GET", "/tester-own/nothing", "all", 404),
            ("GET", "/tester-own/v1/embeddings", "all", 404),
            ("GET", "/tester-own/nothing", "no", 403),
            ("GET", "/tester-own/nothing", "", 401),
            ("GET", "/tester-own", "all", 404),
            ("POST", "/tester-onw/say", "all", 404),
            ("POST", "/docs", "all", 404),
            ("POST", "/tester-own/docs", "all", 405),
            ("POST", "/tester-own/say", "no", 403),
            ("POST", "/chutes/{id}/say", "no", 403),
            ("POST", "/chutes/{id}/say", "", 401),
            # The control API's, and so an admin's: no function has that path.
            ("POST", "/chutes/{id}/sleep", "all", 403),
            ("POST", "/chutes", "all", 403),
            ("GET", "/chutes/{id}/say", "all", 403),
        ],
    )
    def test_refused(self, service, method, path, key, status):
        with pytest.raises(Refusal) as refused:
            self.ask(service, method, path.format(id=self.id), key=key)
        assert refused.value.status == status

    @pytest.mark.parametrize(
        ("path", "key", "said"),
        [
            ("/tester-onw/say", "all", "Did you mean /tester-own/say?"),
            ("/elsewhere/say", "all", "Chutes are below /tester-own; `chutes ps` shows them."),
            ("/tester-own", "all", "It serves /chutes, /openapi.json, /say, "),
            ("/tester-own/sya", "all", "It serves /chutes, /openapi.json, /say, "),
            ("/tester-onw/say", "no", "GET /v1/models lists the chutes."),
        ],
    )
    def test_a_wrong_address_is_told_what_there_is(self, service, path, key, said):
        with pytest.raises(Refusal) as refused:
            self.ask(service, "POST", path, key=key)
        assert (refused.value.status, refused.value.code) == (404, "path_not_found")
        assert said in refused.value.fix

    def test_the_page_wants_no_key(self, service):
        page = self.ask(service, "GET", "/tester-own/docs", key="")
        assert isinstance(page, Answer)
        assert page.kind.startswith(b"text/html")
        assert b"Own" not in page.body


def test_paths_of_the_control_api_are_not_a_cords(tmp_path):
    from chutes import config

    settings = config.load({"CHUTES_HOME": str(tmp_path)})
    for name in TAKEN:
        own = Chute("tester", "Own", "i")
        own.cord(path=f"{name}/deeper")(lambda self: None)
        with pytest.raises(InvalidSpec, match="platform's own"):
            plan_of(own.to_spec(), settings, ())


def test_openapi_of_a_pair_and_of_plain_parameters():
    found = document(chute())
    say = found["paths"]["/say"]
    assert say["post"]["requestBody"]["content"]["application/json"]["schema"]["required"] == ["text"]
    assert say["get"]["parameters"] == [
        {"name": "n", "in": "query", "required": False, "schema": {"type": "integer"}}
    ]


def test_the_control_api_has_no_path_that_the_gateway_does_not_know(tmp_path):
    from fastapi.routing import APIRoute

    from chutes import config
    from chutes.control.api import make
    from chutes.control.platform import Platform
    from chutes.wire import OWN_PATHS, Upstream

    settings = config.load({"CHUTES_HOME": str(tmp_path)})
    tmp_path.joinpath("logs").mkdir()
    platform = Platform(settings, Upstream("control", "127.0.0.1", 1, "k"))
    app = make(platform, "token", lambda: None)
    platform.meter.close()
    platform.store.close()
    found = {route.path.split("/")[1] for route in app.routes if isinstance(route, APIRoute)}
    assert {"chutes", "jobs", "metrics"} <= found <= OWN_PATHS


class TestSecrets:
    def test_its_own_beats_what_is_for_all(self):
        kept = [
            Secret("1", "own", "A", "mine", 0),
            Secret("2", "", "A", "all", 0),
            Secret("3", "", "B", "all", 0),
            Secret("4", "other", "C", "other", 0),
            Secret("5", "id-1", "D", "by id", 0),
        ]
        assert secrets.variables(kept, "id-1", "Own") == {"A": "mine", "B": "all", "D": "by id"}

    def test_a_value_is_in_no_repr(self):
        assert "hush" not in repr(Secret("1", "own", "A", "hush", 0))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("2X", "v"), ("A B", "v"), ("LD_PRELOAD", "v"), ("PYTHONPATH", "v"), ("PATH", "v"),
            ("CHUTES_INSTANCE_KEY", "v"), ("A", ""), ("A", "x\0y"), ("A", "x" * 70_000),
        ],
    )  # fmt: skip
    def test_what_is_no_secret(self, key, value):
        with pytest.raises(InvalidSpec) as refused:
            secrets.check(key, value)
        assert "x" * 20 not in str(refused.value)
        secrets.check("HF_TOKEN", "hf_abc")


HOOK = "startup hook 'a' raised "


@pytest.mark.parametrize(
    ("log", "summary", "fatal"),
    [
        (f"Traceback\nValueError: x\nchutes: fatal: {HOOK}ValueError: x\n", f"{HOOK}ValueError: x", True),
        (f"chutes: failed: {HOOK}ConnectError: x\n", f"{HOOK}ConnectError: x", False),
        # A cord's exceptions are in the log of every such chute, and no reason for its end.
        ("ModuleNotFoundError: No module named 'x'\n", "The engine was ended by signal 11.", False),
    ],
)
def test_why_own_code_ended(log, summary, fatal):
    reason = diagnose(log, 128 + 11, own_code=True)
    assert (reason.summary, reason.fatal) == (summary, fatal)
