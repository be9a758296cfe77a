"""Secrets of a running platform: kept, given another value, forgotten."""

from __future__ import annotations

import contextlib
import time
import uuid
from dataclasses import replace as changed

from chutes.control import secrets
from chutes.control.platform import Platform
from chutes.control.secrets import Secret
from chutes.exception import AlreadyExists, NotFound


def save(platform: Platform, purpose: str, key: str, value: str, replace: bool) -> tuple[Secret, list[str]]:
    """Keep a secret.

    Args:
        purpose: name or id of a chute, deployed or not; empty for all.

    Returns:
        The secret, and the names of the chutes that run without its value.
    """
    secrets.check(key, value)
    same = {purpose := purpose.lower()}
    with contextlib.suppress(NotFound):
        deployment = platform.find(purpose)
        # One that was made before the deploy has the name.
        purpose, same = deployment.chute_id, {deployment.chute_id, deployment.spec.name.lower()}
    known = next((s for s in platform.store.secrets() if s.purpose in same and s.key == key), None)
    if known is not None and not replace:
        raise AlreadyExists(f"There is a secret {key} already.", "--replace gives it another value.")
    if known is not None:
        secret = changed(known, value=value)
    else:
        secret = Secret(str(uuid.uuid4()), purpose, key, value, time.time())
    platform.store.save_secret(secret)
    return secret, _running_with(platform, secret)


def delete(platform: Platform, name: str) -> tuple[Secret, list[str]]:
    """By id, or by its key where only one has it; and the chutes that still run with it."""
    found = [s for s in platform.store.secrets() if name in (s.secret_id, s.key)]
    if not found:
        raise NotFound(f"There is no secret {name!r}.", "`chutes secrets list` shows them.")
    if len(found) > 1:
        raise AlreadyExists(f"{len(found)} secrets have the key {name!r}.", "Name one by its id.")
    platform.store.delete_secret(found[0].secret_id)
    return found[0], _running_with(platform, found[0])


def _running_with(platform: Platform, secret: Secret) -> list[str]:
    alive = {i.chute_id for i in platform.world.instances.values() if not i.phase.over}
    deployments = platform.world.deployments.values()
    return [
        d.spec.name for d in deployments if d.chute_id in alive and secret.is_for(d.chute_id, d.spec.name)
    ]
