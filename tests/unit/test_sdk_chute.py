"""The Chute object: identity, signature, defaults, hooks, and what makes it deployable."""

from __future__ import annotations

import inspect
import subprocess
import sys
import uuid
import warnings

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from chutes.chute import Chute, ChutePack, Cord, Job, NodeSelector, NotEnforcedWarning, Port
from chutes.chute.spec import ChuteSpec, EngineSpec, require_revision
from chutes.exception import InvalidSpec
from chutes.util.context import is_local, is_remote
from chutes.util.user import validate_the_username


def make(**options) -> Chute:
    chute = Chute(**{"username": "someone", "name": "a/chute", "image": "some/image:1", **options})

    @chute.cord(public_api_path="/run")
    async def run(self):
        return "ran"

    return chute


def test_the_uid_is_the_published_formula():
    assert Chute("me", "a/b", "i").uid == "6cc46fb9-913f-58fa-97d8-af87cbcb561e"
    assert Chute("Me", "A/b", "i").uid == str(uuid.uuid5(uuid.NAMESPACE_OID, "Me::chute::A/b"))


def test_the_constructor_has_the_published_parameters_and_defaults():
    found = inspect.signature(Chute.__init__).parameters
    defaults = {n: p.default for n, p in found.items() if p.default is not p.empty}
    assert list(found)[1:4] == ["username", "name", "image"]
    assert defaults == {
        "tagline": "",
        "readme": "",
        "standard_template": None,
        "revision": None,
        "node_selector": None,
        "concurrency": 1,
        "max_instances": 1,
        "shutdown_after_seconds": 300,
        "scaling_threshold": 0.75,
        "allow_external_egress": False,
        "encrypted_fs": False,
        "passthrough_headers": None,
        "tee": False,
        "lock_modules": None,
    }
    assert list(found)[-1] == "kwargs"


def test_it_is_a_fastapi_app_without_documentation_pages():
    chute = make(version="3.1")
    assert isinstance(chute, FastAPI)
    assert chute.docs_url is None
    assert chute.redoc_url is None
    assert chute.version == "3.1"


def test_passthrough_headers_are_not_shared():
    one, two = make(), make()
    one.passthrough_headers["Authorization"] = "x"
    assert two.passthrough_headers == {}


@pytest.mark.parametrize(
    "field", ["name", "readme", "tagline", "uid", "image", "cords", "jobs", "node_selector"]
)
def test_identity_is_read_only(field):
    with pytest.raises(AttributeError):
        setattr(make(), field, "other")


def test_an_author_may_keep_an_engine_of_their_own():
    chute = make()
    chute.serve_with(EngineSpec(name="vllm", model="m"))
    chute.engine = object()  # type: ignore[assignment]
    spec = chute.to_spec().engine
    assert spec is not None
    assert spec.model == "m"


def test_a_chute_file_may_get_away_with_anything_until_it_is_deployed():
    chute = make(concurrency=-4, max_instances=0, name="!", scaling_threshold=9)
    with pytest.raises(InvalidSpec):
        chute.to_spec()


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("concurrency", 0, "1 to 1024"),
        ("concurrency", "8", "1 to 1024"),
        ("concurrency", True, "1 to 1024"),
        ("max_instances", 101, "1 to 100"),
        ("shutdown_after_seconds", 59, "60 to 604800"),
        ("shutdown_after_seconds", 604_801, "60 to 604800"),
        ("scaling_threshold", 0, "above 0 and at most 1"),
        ("scaling_threshold", float("nan"), "above 0 and at most 1"),
        ("scaling_threshold", 1.01, "above 0 and at most 1"),
        ("name", "ab", "3 to 127"),
        ("name", "-abc", "begin with"),
        ("name", "a b c", "letters"),
        ("username", "a-b-c", "3 to 15"),
        ("tagline", "x" * 1025, "1024"),
        ("readme", "x" * 16_385, "16384"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name_value_and_range(field, value, says):
    with pytest.raises(InvalidSpec) as caught:
        make(**{field: value}).to_spec()
    assert field in str(caught.value).lower()
    assert says in str(caught.value)
    assert caught.value.fix
    if field not in ("tagline", "readme"):
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 1024, "max_instances": 100, "shutdown_after_seconds": 60, "scaling_threshold": 1},
        {"name": "Qwen/Qwen3-8B"},
        {"name": "a" * 127},
        {"shutdown_after_seconds": 604_800},
    ],
)
def test_the_limits_themselves_are_served(options):
    make(**options).to_spec()


def test_a_chute_without_cords_and_jobs_is_not_deployable():
    with pytest.raises(InvalidSpec, match="nothing that can be called"):
        Chute("someone", "empty", "i").to_spec()


def test_the_spec_survives_a_round_trip_as_json():
    chute = make(node_selector=NodeSelector(gpu_count=2, include=["H100"]), tagline="t", revision="main")
    spec = chute.to_spec(ref="a:chute", code="x = 1")
    assert ChuteSpec.model_validate_json(spec.model_dump_json()) == spec
    assert (spec.uid, spec.ref, spec.code, spec.image) == (chute.uid, "a:chute", "x = 1", "some/image:1")
    assert spec.cords[0].model_dump(include={"function", "path", "public_api_path", "stream"}) == {
        "function": "run",
        "path": "/run",
        "public_api_path": "/run",
        "stream": False,
    }


def test_no_node_selector_means_the_default_one():
    assert make().node_selector == NodeSelector()
    assert make().to_spec().node_selector.min_vram_gb_per_gpu == 16


def test_what_is_not_enforced_is_said_once_and_only_when_asked_for():
    with pytest.warns(NotEnforcedWarning) as caught:
        make(tee=True, lock_modules=True)
    assert len(caught) == 1
    said = str(caught[0].message)
    assert "tee:" in said
    assert "lock_modules:" in said
    assert "encrypted_fs" not in said
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(tee=False, lock_modules=None, encrypted_fs=False)


def hooked(log: list[str]) -> Chute:
    chute = make()

    @chute.on_startup(priority=90)
    def late(self):
        log.append("late")

    @chute.on_startup()
    async def first_normal(self):
        self.model = "loaded"
        log.append("first normal")

    @chute.on_startup()
    def second_normal(self):
        log.append(f"second normal, model {self.model}")

    @chute.on_startup(priority=5)
    async def early(self):
        log.append("early")

    @chute.on_shutdown(priority=80)
    async def close_last(self):
        log.append(f"close {self.model}")

    @chute.on_shutdown(priority=1)
    def breaks(self):
        log.append("breaks")
        raise RuntimeError("in a hook")

    return chute


UP = ["early", "first normal", "second normal, model loaded", "late"]
DOWN = ["breaks", "close loaded"]


async def test_hooks_run_in_order_of_priority_and_shutdown_runs(monkeypatch):
    monkeypatch.setenv("CHUTES_EXECUTION_CONTEXT", "REMOTE")
    log: list[str] = []
    chute = hooked(log)
    await chute.initialize()
    await chute.initialize()
    assert log == UP
    await chute.shutdown()
    await chute.shutdown()
    assert log == UP + DOWN


def test_the_lifespan_runs_hooks_and_the_authors_own_lifespan(monkeypatch):
    monkeypatch.setenv("CHUTES_EXECUTION_CONTEXT", "REMOTE")
    log: list[str] = []
    with TestClient(hooked(log)) as client:
        assert log == UP
        assert client.post("/run").json() == "ran"
    assert log == UP + DOWN


async def test_on_the_authors_machine_nothing_runs(monkeypatch):
    monkeypatch.delenv("CHUTES_EXECUTION_CONTEXT", raising=False)
    log: list[str] = []
    chute = hooked(log)
    await chute.initialize()
    await chute.shutdown()
    assert log == []


async def test_a_start_that_fails_is_still_cleaned_up(monkeypatch):
    monkeypatch.setenv("CHUTES_EXECUTION_CONTEXT", "REMOTE")
    log: list[str] = []
    chute = make()

    @chute.on_startup()
    def fails(self):
        raise OSError("no model")

    @chute.on_shutdown()
    def clean(self):
        log.append("cleaned")

    with pytest.raises(OSError, match="no model"):
        await chute.initialize()
    await chute.shutdown()
    assert log == ["cleaned"]


def test_context(monkeypatch):
    monkeypatch.setenv("CHUTES_EXECUTION_CONTEXT", "REMOTE")
    assert is_remote()
    assert not is_local()
    monkeypatch.setenv("CHUTES_EXECUTION_CONTEXT", "remote")
    assert is_local()


def test_usernames():
    assert validate_the_username("Some_one9") == "Some_one9"
    for bad in ("ab", "a" * 16, "a-b-c", "abc\n", ""):
        with pytest.raises(ValueError, match="3 to 15"):
            validate_the_username(bad)


def test_a_pack_holds_a_chute():
    chute = make()
    assert ChutePack(chute=chute).chute is chute


def test_a_revision_can_be_required():
    chute = make()
    require_revision(chute.to_spec())  # no engine, nothing to pin
    for revision in (None, "main"):
        chute.serve_with(EngineSpec(name="vllm", model="org/m", revision=revision))
        with pytest.raises(ValueError, match=r"must specify revision= .* huggingface revision"):
            require_revision(chute.to_spec())
    chute.serve_with(EngineSpec(name="vllm", model="org/m", revision="a" * 40))
    require_revision(chute.to_spec())


class TestNodeSelector:
    def test_defaults(self):
        assert NodeSelector().model_dump() == {
            "gpu_count": 1,
            "min_vram_gb_per_gpu": 16,
            "max_hourly_price_per_gpu": None,
            "include": None,
            "exclude": None,
        }

    @pytest.mark.parametrize(
        ("key", "value", "proposal"),
        [
            ("num_gpus", 2, "gpu_count=2"),
            ("min_vram_gpu_per_gpu", 24, "min_vram_gb_per_gpu=24"),
            ("min_vram_gb_per_gpus", 24, "min_vram_gb_per_gpu=24"),
            ("gpu_type", "h100", "include=['h100']"),
            ("gpucount", 2, "gpu_count=2"),
            ("excludes", ["l4"], "exclude=['l4']"),
            ("xyzzy", 1, "The keys are: gpu_count"),
        ],
    )
    def test_an_unknown_key_is_refused_with_a_proposal(self, key, value, proposal):
        with pytest.raises(InvalidSpec) as caught:
            NodeSelector(**{key: value})
        assert repr(key) in str(caught.value)
        assert proposal in caught.value.fix

    @pytest.mark.parametrize(
        "bad",
        [
            {"gpu_count": 0},
            {"gpu_count": 129},
            {"gpu_count": "many"},
            {"min_vram_gb_per_gpu": 0},
            {"min_vram_gb_per_gpu": 81920},
            {"max_hourly_price_per_gpu": 0},
            {"max_hourly_price_per_gpu": float("inf")},
            {"include": "h100"},
        ],
    )
    def test_values_out_of_range_are_refused(self, bad):
        with pytest.raises(InvalidSpec) as caught:
            NodeSelector(**bad)
        assert next(iter(bad)) in str(caught.value)
        assert caught.value.fix

    def test_hardware_that_exists_is_within_range(self):
        NodeSelector(gpu_count=72, min_vram_gb_per_gpu=288, max_hourly_price_per_gpu=12)

    def test_ids_are_compared_in_lower_case(self):
        assert NodeSelector(include=["H100"], exclude=[" B200"]).model_dump(
            include={"include", "exclude"}
        ) == {
            "include": ["h100"],
            "exclude": ["b200"],
        }


class TestJob:
    def test_defaults(self):
        found = inspect.signature(Job.__init__).parameters
        assert {n: p.default for n, p in found.items() if p.default is not p.empty} == {
            "ports": None,
            "timeout": None,
            "upload": True,
            "ssh": False,
        }

    def test_ssh_adds_its_port(self):
        job = Job(make(), ports=[{"name": "web", "port": 8080, "proto": "http"}], ssh=True)  # type: ignore[list-item]
        assert [(p.name, p.port, p.proto) for p in job.ports] == [("web", 8080, "http"), ("ssh", 2202, "tcp")]

    @pytest.mark.parametrize("timeout", [29, 86_401, 60.5, True])
    def test_timeouts_out_of_range(self, timeout):
        with pytest.raises(AssertionError):
            Job(make(), timeout=timeout)
        with pytest.raises(InvalidSpec):
            Job(make(), timeout=timeout)

    def test_ports_are_checked(self):
        with pytest.raises(ValueError, match="8001"):
            Port(name="web", port=8001, proto="tcp")
        with pytest.raises(ValueError, match="8080"):
            Job(make(), ports=[Port("a", 8080, "tcp"), Port("b", 8080, "udp")])
        chute = make()

        @chute.job(ports=[Port("Web", 8080, "tcp")])
        async def work(self):
            return 1

        with pytest.raises(InvalidSpec, match="Web"):
            chute.to_spec()

    async def test_a_job_runs_and_leaves_files(self, tmp_path):
        chute = make()

        @chute.job(timeout=30)
        async def work(self, **job_data):
            return job_data["n"] + 1, job_data["output_dir"], self is chute

        outcome = await chute.jobs[0].run(output_dir=tmp_path, n=1)
        assert outcome == {
            "status": "complete",
            "result": (2, str(tmp_path), True),
            "output_dir": str(tmp_path),
        }

    async def test_a_job_fails_or_is_cancelled(self, tmp_path):
        chute = make()

        @chute.job()
        async def fails(self, **job_data):
            raise ValueError("no data")

        @chute.job()
        async def waits(self, **job_data):
            chute.jobs[1].cancel_event.set()
            await __import__("asyncio").sleep(60)

        failed = await chute.jobs[0].run(output_dir=tmp_path)
        assert failed["status"] == "error"
        assert failed["detail"].startswith("no data\nTraceback")
        assert (await chute.jobs[1].run(output_dir=tmp_path))["status"] == "cancelled"


def test_importing_the_sdk_is_light():
    heavy = ["uvicorn", "rich", "typer", "httpx", "httpx2", "huggingface_hub", "torch", "transformers"]
    code = (
        "import sys, chutes.chute; light = 'fastapi' not in sys.modules;"
        "from chutes.chute import Chute, NodeSelector, Job, Port, Cord, ChutePack;"
        "from chutes.chute.template import build_vllm_chute; import chutes.chute.loader;"
        f"print(light, [m for m in {heavy!r} if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["True", "[]"]


def test_the_published_names_are_where_they_were():
    from chutes.chute import cord, job
    from chutes.image.standard.diffusion import DIFFUSION
    from chutes.image.standard.sglang import SGLANG
    from chutes.image.standard.vllm import VLLM

    assert (cord.Cord, job.Port, job.Job) == (Cord, Port, Job)
    assert all(isinstance(name, str) and ":" in name for name in (VLLM, SGLANG, DIFFUSION))


async def test_a_failed_start_is_told_from_what_cleans_up_after_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CHUTES_EXECUTION_CONTEXT", "REMOTE")
    cleaned: list[Chute] = []
    chute = Chute("tester", "fails-at-start", image="python:3.12")

    @chute.on_startup()
    def start(self):
        raise RuntimeError("no such device")

    @chute.on_shutdown()
    def stop(self):
        cleaned.append(self)

    with pytest.raises(RuntimeError, match="no such device"):
        async with chute.router.lifespan_context(chute):
            raise AssertionError("it must not get here")
    assert cleaned == [chute]
    assert chute.stage == "startup hook 'start'"
