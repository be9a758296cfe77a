"""The model of `MODEL=`: found on the platform, woken, or deployed as `chutes deploy` does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import msgspec

from chutes import config as settings
from chutes.cli import client, output
from chutes.exception import ChutesError, EngineFailed, NotFound, PlatformUnreachable

REF = "templates.vllm_chute:chute"
POLL_SECONDS = 0.5


class Deployed(msgspec.Struct, kw_only=True):
    """A chute that is ready."""

    name: str
    chute_id: str
    version: str
    engine: str
    engine_version: str
    accelerator: str = ""
    port: int | None = None
    pid: int | None = None
    """Of one instance of it; others answer at the gateway too."""
    instances: int = 1
    arguments: list[str] = []
    plan: dict[str, Any] | None = None


def deployed(model: str, ref: str = REF) -> tuple[client.Platform, Deployed]:
    """The platform and the chute of this model, which is deployed if it is not there.

    Args:
        model: its name or an alias; empty: the only one that is deployed, or else the chute's own default.
        ref: the chute to deploy; it is told the model in `MODEL`.

    Raises:
        ChutesError: it cannot be deployed, or does not become ready; with the reason and the fix.
    """
    config = settings.load()
    try:
        platform = client.connect(config)
        view = _find(platform.call("GET", "/chutes/"), model)
    except PlatformUnreachable:
        platform, view = None, None
    if view is None:
        output.note(f"{model or 'No model'} is {'not ' * bool(model)}deployed; deploying {ref}.")
        view = _deploy(ref, model)
        platform = client.connect(config)
    assert platform is not None
    return platform, _ready(platform, view)


def _find(views: list[dict[str, Any]], model: str) -> dict[str, Any] | None:
    if not model:
        return views[0] if len(views) == 1 else None
    for view in views:
        if model in (view["name"], view["chute_id"], view["model"], *view["aliases"]):
            return view
    return None


def _deploy(ref: str, model: str) -> dict[str, Any]:
    """`chutes deploy`, whose progress is seen as it is."""
    done = subprocess.run(
        [sys.executable, "-m", "chutes", "deploy", "--yes", "--json", ref],
        env={**os.environ, **({"MODEL": model} if model else {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise ChutesError(
            f"{model or ref} could not be deployed; what stands above this line says why.",
            f"MODEL={model} chutes deploy --dry-run {ref}  shows the plan." if model else "",
        )
    return json.loads(done.stdout)["chute"]


def _ready(platform: client.Platform, view: dict[str, Any]) -> Deployed:
    """Wait until it answers."""
    if view["phase"] in ("asleep", "falling asleep"):
        output.note(f"{view['name']} is asleep; waking it.")
        platform.call("POST", client.named("chutes", view["chute_id"]) + "/wake")
    progress = output.progress()
    try:
        while view["phase"] != "ready":
            instance = view["instance"] or {}
            if view["given_up"]:
                raise EngineFailed(
                    f"{view['name']} failed: {instance.get('reason', '')}", instance.get("fix", "")
                )
            progress.show(
                view["phase"],
                instance.get("detail", ""),
                instance.get("done", 0),
                instance.get("total", 0),
            )
            time.sleep(POLL_SECONDS)
            view = platform.call("GET", f"/chutes/{view['chute_id']}")
    finally:
        progress.close()
    engine, _, version = view["engine"].partition(" ")
    instance = view["instance"]
    try:
        planned = platform.call("GET", f"/chutes/{view['chute_id']}/plan")
    except NotFound:  # a platform of an earlier version
        planned = {"plan": None, "engine_args": []}
    return Deployed(
        name=view["name"],
        chute_id=view["chute_id"],
        version=view["version"],
        engine=engine,
        engine_version=version,
        accelerator=view["accelerator"],
        port=instance["port"],
        pid=instance["pid"],
        instances=sum(one["phase"] == "ready" for one in view["instances"]),
        arguments=planned["engine_args"],
        plan=planned["plan"],
    )
