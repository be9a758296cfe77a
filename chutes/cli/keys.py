"""keys create, list, delete."""

from __future__ import annotations

import time

from chutes import config as settings
from chutes.cli import client, output


def create(name: str, admin: bool, chutes: list[str] | None, as_json: bool) -> None:
    platform = client.connect_or_start(settings.load())
    key = platform.call("POST", "/api_keys/", {"name": name, "admin": admin, "chutes": chutes or None})
    if as_json:
        output.document(key)
        return
    # The key alone on standard output: `export CHUTES_API_KEY=$(chutes keys create --name me)`.
    output.say(key["secret_key"])
    output.note("Keep it: it is not shown again. Send it as `Authorization: Bearer` or `X-API-Key`.")


def list_all(as_json: bool) -> None:
    keys = client.connect(settings.load()).call("GET", "/api_keys/")
    if as_json:
        output.document(keys)
    elif not keys:
        output.note("There is no key yet: chutes keys create --name me")
    else:
        now = time.time()
        output.table(
            ["NAME", "ID", "MAY", "AGE"],
            [
                [key["name"], key["api_key_id"], _may(key), output.age(now - key["created_at"])]
                for key in keys
            ],
        )


def _may(key: dict) -> str:
    calls = "all chutes" if key["chute_ids"] is None else f"{len(key['chute_ids'])} chute(s)"
    return f"call {calls}" + (", manage" if key["admin"] else "")


def delete(name: str, as_json: bool) -> None:
    answer = client.connect(settings.load()).call("DELETE", client.named("api_keys", name))
    if as_json:
        output.document(answer)
    else:
        output.note(f"Deleted key {name}.")
