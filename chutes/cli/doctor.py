"""doctor: what is here, what is missing, what to do about it."""

from __future__ import annotations

import os
import platform as host
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import chutes
from chutes import compiled
from chutes import config as settings
from chutes.cli import output
from chutes.control.running import find_running
from chutes.engine.environment import is_installed
from chutes.engine.release import releases
from chutes.hardware import devices, profiles

HUB_SECONDS = 3.0
GIB = 1 << 30


def doctor(as_json: bool) -> None:
    found = examine()
    if as_json:
        output.document(found)
        return
    for line in _lines(found):
        output.say(line)


def examine() -> dict[str, Any]:
    """Everything the platform depends on, as found now."""
    config = settings.load()
    machine = devices.detect()
    shelf = profiles.load(profiles.find(config.home, config.profiles))
    running = find_running(config)
    wanted = "cuda" if machine.gpus else "cpu"
    return {
        "chutes": chutes.__version__,
        "python": {"version": host.python_version(), "executable": sys.executable},
        "system": f"{host.system()} {host.release()} {host.machine()}",
        "cpus": machine.cpus,
        "memory_bytes": {"total": machine.memory_total, "available": machine.memory_available},
        "gpus": [
            {
                "index": gpu.index,
                "name": gpu.name,
                "id": shelf.gpu_id(gpu.name, gpu.memory_total),
                "memory_bytes": {"total": gpu.memory_total, "free": gpu.memory_free},
                "capability": ".".join(map(str, gpu.capability)),
            }
            for gpu in machine.gpus
        ],
        "gpu_driver": machine.gpu_driver,
        "gpu_problem": machine.gpu_problem,
        "home": {"path": str(config.home), "free_bytes": _free(config.home)},
        "cache": {"path": str(config.cache), "free_bytes": _free(config.cache)},
        "engines": [
            {
                "id": release.id,
                "accelerator": release.accelerator,
                "installed": is_installed(release, config.engines) is not None,
                "disk_bytes": release.disk_bytes,
                "for_this_machine": release.accelerator == wanted,
            }
            for release in releases()
        ],
        "hub": hub_reach(),
        "gateway_compiled": compiled.there() is not None,
        "platform": {"url": running.url, "pid": running.pid, "version": running.version} if running else None,
    }


def hub_reach() -> dict[str, Any]:
    """Whether the model hub's port can be connected to from here."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    url = urlparse(endpoint)
    port = url.port or (443 if url.scheme == "https" else 80)
    began = time.monotonic()
    try:
        with socket.create_connection((url.hostname or "", port), HUB_SECONDS):
            pass
    except OSError as error:
        return {"endpoint": endpoint, "reachable": False, "problem": error.strerror or str(error)}
    return {"endpoint": endpoint, "reachable": True, "seconds": round(time.monotonic() - began, 3)}


def _free(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _lines(found: dict[str, Any]) -> list[str]:
    free, total = (output.size(found["memory_bytes"][key]) for key in ("available", "total"))
    lines = [
        _line(True, "chutes", f"{found['chutes']}, Python {found['python']['version']}, {found['system']}"),
        _line(True, "machine", f"{found['cpus']} cores, {free} of {total} memory free"),
    ]
    for gpu in found["gpus"]:
        free, total = (output.size(gpu["memory_bytes"][key]) for key in ("free", "total"))
        lines.append(
            _line(
                True,
                f"gpu {gpu['index']}",
                f"{gpu['name']} ({gpu['id'] or 'not in profiles'}), {free} of {total} free",
            )
        )
    if not found["gpus"]:
        why = found["gpu_problem"] or "no NVIDIA driver: engines run on the CPU"
        lines.append(_line(not found["gpu_problem"], "gpu", f"none ({why})"))
    for engine in found["engines"]:
        if engine["for_this_machine"]:
            enough = engine["installed"] or found["cache"]["free_bytes"] > engine["disk_bytes"]
            state = (
                "installed"
                if engine["installed"]
                else f"not installed yet; takes {output.size(engine['disk_bytes'])}"
            )
            lines.append(_line(enough, "engine", f"{engine['id']}: {state}"))
    core = "compiled" if found["gateway_compiled"] else f"interpreted ({compiled.ADVICE})"
    lines.append(_line(True, "gateway", core))
    for place in ("home", "cache"):
        where = found[place]
        # Under 5 GiB not even the smallest engine fits beside a model.
        lines.append(
            _line(
                where["free_bytes"] > 5 * GIB,
                place,
                f"{where['path']}, {output.size(where['free_bytes'])} free",
            )
        )
    hub = found["hub"]
    lines.append(
        _line(True, "hub", f"{hub['endpoint']} answers in {hub['seconds']} s")
        if hub["reachable"]
        else _line(
            False,
            "hub",
            f"{hub['endpoint']} is out of reach ({hub['problem']}): "
            "only local directories and packaged models",
        )
    )
    running = found["platform"]
    lines.append(
        _line(True, "platform", f"{running['url']}, pid {running['pid']}" if running else "not running")
    )
    return lines


def _line(good: bool, label: str, text: str) -> str:
    return f"{'ok ' if good else '!! '} {label:<9} {text}"
