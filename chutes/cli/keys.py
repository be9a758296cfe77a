"""keys create, list, delete."""

from __future__ import annotations

import time

from chutes import config as settings
from chutes.cli import client, output
from chutes.util import times


def create(
    name: str,
    admin: bool,
    chutes: list[str] | None,
    expires: str | None,
    limits: dict[str, int | None],
    as_json: bool,
) -> None:
    """
    Args:
        expires: as in `util/times`.
        limits: requests_per_minute, tokens_per_minute, concurrency.
    """
    expires_at = times.after(expires, time.time()) if expires else None
    platform = client.connect_or_start(settings.load())
    body = {"name": name, "admin": admin, "chutes": chutes or None, "expires_at": expires_at, **limits}
    key = platform.call("POST", "/api_keys/", body)
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
            ["NAME", "ID", "MAY", "LIMITS", "EXPIRES", "AGE", "LAST USE"],
            [
                [
                    key["name"],
                    key["api_key_id"],
                    _may(key),
                    _limits(key),
                    _expires(key["expires_at"], now),
                    output.age(now - key["created_at"]),
                    f"{output.age(now - key['last_used_at'])} ago" if key["last_used_at"] else "never",
                ]
                for key in keys
            ],
        )


def _may(key: dict) -> str:
    calls = "all chutes" if key["chute_ids"] is None else f"{len(key['chute_ids'])} chute(s)"
    return f"call {calls}" + (", manage" if key["admin"] else "")


def _limits(key: dict) -> str:
    said = [
        f"{key[field]:,} {unit}"
        for field, unit in (
            ("requests_per_minute", "requests/min"),
            ("tokens_per_minute", "tokens/min"),
            ("concurrency", "at once"),
        )
        if key[field] is not None
    ]
    return ", ".join(said) or "none"


def _expires(at: float | None, now: float) -> str:
    if at is None:
        return "never"
    return "has expired" if at <= now else f"{times.utc(at)} UTC"


def delete(name: str, as_json: bool) -> None:
    answer = client.connect(settings.load()).call("DELETE", client.named("api_keys", name))
    if as_json:
        output.document(answer)
    else:
        output.note(f"Deleted key {name}.")
