"""secrets create, list, delete."""

from __future__ import annotations

import getpass
import sys
import time
from typing import Any

from chutes import config as settings
from chutes.cli import client, output


def create(purpose: str, key: str, value: str | None, replace: bool, restart: bool, as_json: bool) -> None:
    """
    Args:
        value: None: asked for, or read from standard input, where no list of processes shows it.
    """
    if value is None:
        value = getpass.getpass(f"{key}: ") if sys.stdin.isatty() else sys.stdin.read().rstrip("\n")
    platform = client.connect_or_start(settings.load())
    body = {"purpose": purpose, "key": key, "value": value, "replace": replace}
    kept = platform.call("POST", "/secrets/", body)
    if as_json:
        output.document(kept)
    else:
        output.note(f"{key} is kept for {_purpose(kept)}. Its value is not shown again.")
        if purpose and not kept["chute"]:
            output.note(f"No chute {purpose!r} is deployed yet; one of that name will get it.")
    _restart(platform, kept["restart"], restart)


def list_all(as_json: bool) -> None:
    kept = client.connect(settings.load()).call("GET", "/secrets/")
    if as_json:
        output.document(kept)
    elif not kept:
        output.note("There is no secret yet: chutes secrets create --purpose CHUTE --key HF_TOKEN")
    else:
        now = time.time()
        output.table(
            ["KEY", "PURPOSE", "ID", "AGE"],
            [[s["key"], _purpose(s), s["secret_id"], output.age(now - s["created_at"])] for s in kept],
        )


def delete(name: str, restart: bool, as_json: bool) -> None:
    platform = client.connect(settings.load())
    gone = platform.call("DELETE", client.named("secrets", name))
    if as_json:
        output.document(gone)
    else:
        output.note(f"Deleted {gone['key']} of {_purpose(gone)}.")
    _restart(platform, gone["restart"], restart)


def _purpose(secret: dict[str, Any]) -> str:
    return secret["chute"] or secret["purpose"] or "all chutes"


def _restart(platform: client.Platform, names: list[str], wanted: bool) -> None:
    for name in names:
        if wanted:
            platform.call("POST", client.named("chutes", name) + "/sleep")
            platform.call("POST", client.named("chutes", name) + "/wake")
            output.note(f"{name} is being restarted.")
        else:
            output.note(
                f"{name} runs as before until it is restarted: --restart does so, and so does "
                f"`chutes sleep {name}` with the next request."
            )
