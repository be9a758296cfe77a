"""diffusers: pipelines that draw, behind a server of our own (`inside/diffusion_server.py`)."""

from __future__ import annotations

import json
import re
from pathlib import Path

from chutes.engine.contract import Released, Start
from chutes.engine.environment import INSIDE
from chutes.engine.process import ask
from chutes.engine.release import EngineRelease
from chutes.exception import EngineFailed, InvalidSpec

SERVER = INSIDE / "diffusion_server.py"

# The smallest picture that may be asked for, in few steps. Pipelines of billions of parameters draw it in
# minutes on a CPU; SDXL in a second on a GPU.
WARM_SIDE = 128
WARM_STEPS = 2
WARM_SECONDS = 1800.0

_LINES = (
    (re.compile(r"^loading (\w+) in (\w+)", re.MULTILINE), "loading {0} in {1}"),
    (re.compile(r"^loaded (\w+)", re.MULTILINE), "loaded {0}, about to answer"),
)


class Diffusers(Released):
    """See `contract.Engine`."""

    async def check_arguments(
        self, python: Path, release: EngineRelease, args: list[str], cache_dir: Path
    ) -> None:
        del python, release, cache_dir
        if args:  # the builder gives none: what there is to set are options
            raise InvalidSpec(f"This engine takes no arguments: {' '.join(args)}.", "Use pipeline_args.")

    def command(self, start: Start) -> list[str]:
        assert start.directory is not None
        return [
            str(start.python),
            str(SERVER),
            "--model",
            str(start.directory),
            "--served-model-name",
            *start.served_names,
            "--host",
            start.endpoint.host,
            "--port",
            str(start.endpoint.port),
            *start.args,
        ]

    def variables(self, start: Start) -> dict[str, str]:
        values = {
            "DIFFUSION_API_KEY": start.endpoint.api_key,
            # Not on the command line: an author's pipeline_args are nobody else's business.
            "DIFFUSION_SETTINGS": json.dumps(start.spec.engine.options if start.spec.engine else {}),
            "DO_NOT_TRACK": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONUNBUFFERED": "1",
        }
        if start.directory is None or not start.directory.is_file():
            # Files are here already. A checkpoint in one file has no configuration in it: diffusers gets that
            # from the hub, unless pipeline_args name a `config` that is here.
            values |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        if start.plan.accelerator == "cpu":
            # torch's threads wait for each other by spinning. Beside other busy processes a small autoencoder
            # took 1.5 s for what took 0.15 s with threads that sleep (two cores, load 8).
            values["OMP_WAIT_POLICY"] = "PASSIVE"
        return values

    def milestone(self, log: str) -> str:
        reached = "starting the engine"
        for pattern, remark in _LINES:
            if found := pattern.search(log):
                reached = remark.format(*found.groups())
        return reached

    async def warm(self, start: Start) -> None:
        """A small picture: compiles what is compiled lazily, and fails where numbers overflow."""
        body = {
            "prompt": "a red apple on a table",
            "size": f"{WARM_SIDE}x{WARM_SIDE}",
            "num_inference_steps": WARM_STEPS,
            "seed": 0,
        }
        endpoint = start.endpoint
        status, answer = await ask(
            endpoint.port, "/v1/images/generations", endpoint.api_key, body, WARM_SECONDS
        )
        if status == 400 and b"content_policy_violation" in answer:
            return  # two steps draw noise, of which a safety checker may think anything
        if status != 200:
            text = answer.decode(errors="replace")[:300]
            raise EngineFailed(f"The engine started but its first picture was {status or 'none'}: {text}")
        try:
            picture = json.loads(answer)["data"][0]["b64_json"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise EngineFailed(f"The engine's first answer is no picture: {answer[:300]!r}") from None
        if not str(picture).startswith("iVBORw0KGgo"):  # how every PNG begins, in base64
            raise EngineFailed("The engine's first answer is no PNG.")
