"""Where requests go: the platform's gateway, an engine of it directly, or any OpenAI-compatible URL.

What is wrong with a target is found before any load, and said with what to do about it.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx2
import msgspec
import psutil

from benchmarks.harness import result
from benchmarks.harness.deploying import Deployed, deployed
from benchmarks.harness.messages import Address, Ask
from chutes.cli.client import Platform
from chutes.exception import (
    AuthenticationRequired,
    ChutesError,
    NotFound,
    PlatformUnreachable,
    UsageError,
)

GATEWAY, ENGINE = "gateway", "engine"
ANSWER_SECONDS = 600.0
"""For the first answer: an engine may compile for it. It is part of no measurement."""
ENGINE_KEYS = {"diffusers": "DIFFUSION_API_KEY", "sglang": "SGLANG_API_KEY", "vllm": "VLLM_API_KEY"}
"""Where each engine has its own key from."""


class Target(msgspec.Struct):
    """Something to ask, and what else is known of it."""

    address: Address
    about: result.Target
    deployed: Deployed | None = None
    """Of the platform's own."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together, where it says so."""

    @property
    def name(self) -> str:
        return self.address.name

    def url(self, path: str) -> str:
        return url_of(self.address, path)


def url_of(address: Address, path: str = "") -> str:
    scheme = "https" if address.tls else "http"
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{scheme}://{host}:{address.port}{address.prefix}{path}"


def address_of(name: str, url: str, key: str, model: str, verify: bool = True) -> Address:
    """From a base URL, with or without `/v1`.

    Raises:
        UsageError: it is no URL.
    """
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        port = 0
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        raise UsageError(
            f"{url!r} is not a target.",
            f"{GATEWAY}, {ENGINE}, http://HOST:PORT, or NAME=http://HOST:PORT.",
        )
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Address(name, parts.hostname, port, parts.scheme == "https", verify, prefix, key, model)


@contextmanager
def found(
    wishes: list[str], model: str, ref: str, keys: list[str], verify: bool = True
) -> Iterator[list[Target]]:
    """The targets by what was typed: `gateway`, `engine`, `URL` or `NAME=URL`. What was made for the run
    (a key) is gone after it.

    Args:
        keys: for URLs in their order; the last one also for those after it.

    Raises:
        ChutesError: one is not there; says which, and what to do.
    """
    own = [wish for wish in wishes if wish in (GATEWAY, ENGINE)]
    if len(set(wishes)) < len(wishes):
        raise UsageError("A target is named twice.", "Give each a name of its own: a=URL b=URL.")
    made, platform, key_id = None, None, None
    if own:
        platform, made = deployed(model, ref)
    targets: list[Target] = []
    urls = 0
    try:
        for wish in wishes:
            if wish == GATEWAY:
                assert platform is not None
                assert made is not None
                key_id, key = _own_key(platform)
                targets.append(_own(GATEWAY, platform.url, key, made))
            elif wish == ENGINE:
                assert made is not None
                targets.append(_own(ENGINE, f"http://127.0.0.1:{made.port}", _engine_key(made), made))
            else:
                name, _, url = wish.rpartition("=") if "://" in wish.partition("=")[2] else ("", "", wish)
                key = keys[min(urls, len(keys) - 1)] if keys else os.environ.get("OPENAI_API_KEY", "")
                urls += 1
                address = address_of(name or urlsplit(url).netloc or url, url, key, model, verify)
                about = result.Target(name=address.name, url=url_of(address), model=model)
                targets.append(Target(address, about))
                if not model:
                    about.model = address.model = _only_model(targets[-1])
        yield targets
    finally:
        if platform is not None and key_id is not None:
            with suppress(
                PlatformUnreachable
            ):  # it went down meanwhile; what was measured is not lost for that
                platform.call("DELETE", f"/api_keys/{key_id}")


def _own(name: str, url: str, key: str, made: Deployed) -> Target:
    address = address_of(name, url, key, made.name)
    about = result.Target(
        name=name,
        url=url,
        model=made.name,
        engine=made.engine,
        engine_version=made.engine_version,
        deployment_version=made.version,
        arguments=made.arguments,
        plan=made.plan,
    )
    return Target(address, about, made)


def _own_key(platform: Platform) -> tuple[str, str]:
    """A key of the platform for this run alone: (id, key)."""
    view = platform.call("POST", "/api_keys/", {"name": f"bench-{secrets.token_hex(4)}"})
    return view["api_key_id"], view["secret_key"]


def _engine_key(made: Deployed) -> str:
    """The engine's own key, which the platform shows nobody: out of the environment of its process, which
    only its owner can read.

    Raises:
        UsageError: it is not on this machine, or somebody else's.
    """
    try:
        first = psutil.Process(made.pid or 0)
        for process in [first, *first.children(recursive=True)]:
            try:
                if key := process.environ().get(ENGINE_KEYS.get(made.engine, "")):
                    return key
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    raise UsageError(
        f"The engine of {made.name} cannot be asked directly from here.",
        f"Run this on the machine and as the user of the platform, or leave out --target {ENGINE}.",
    )


class _Model(msgspec.Struct):
    id: str
    aliases: list[str] | None = None
    max_model_len: Any = None
    context_length: Any = None


class _Models(msgspec.Struct):
    data: list[_Model]


def _models(target: Target) -> list[_Model] | None:
    """What it says it has; None where it has no such list.

    Raises:
        PlatformUnreachable, AuthenticationRequired, ChutesError
    """
    answer = _request(target, "GET", "/v1/models")
    if answer.status_code == 404:  # not everybody has it; the first request will tell
        return None
    _refused(target, answer)
    try:
        return msgspec.json.decode(answer.content, type=_Models).data
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ChutesError(
            f"{target.url('/v1/models')} does not answer as OpenAI's does.", "Is the address right?"
        ) from None


def _only_model(target: Target) -> str:
    """The model of a target that has no other. Raises UsageError, and what `_models` does."""
    names = [model.id for model in _models(target) or []]
    if len(names) != 1:
        listed = f" It has: {', '.join(names[:8])}." if names else ""
        raise UsageError(f"Which model of {url_of(target.address)}?{listed}", "--model NAME")
    return names[0]


def check(target: Target) -> None:
    """Ask for the list of models: whether somebody answers, takes the key, and has the model.

    Raises:
        PlatformUnreachable, AuthenticationRequired, NotFound
    """
    models = _models(target)
    if models is None:
        return
    mine = [model for model in models if target.address.model in (model.id, *(model.aliases or ()))]
    if not mine:
        names = ", ".join(model.id for model in models[:8]) or "none"
        raise NotFound(
            f"{target.name} ({url_of(target.address)}) has no model {target.address.model!r}.",
            f"It has: {names}. Choose with --model.",
        )
    length = mine[0].max_model_len or mine[0].context_length
    target.max_model_len = length if isinstance(length, int) else None


class _Limit(msgspec.Struct):
    max_tokens: int = 0


def check_lengths(target: Target, asks: Iterable[Ask]) -> None:
    """Raises UsageError: a request and its answer are longer than the model's context."""
    limit = msgspec.json.Decoder(_Limit).decode
    longest = max(((ask.wanted_input_tokens or 0) + limit(ask.body).max_tokens for ask in asks), default=0)
    if target.max_model_len and longest > target.max_model_len:
        raise UsageError(
            f"A prompt and its answer of {longest:,} tokens together do not fit the context of "
            f"{target.address.model}, {target.max_model_len:,} tokens.",
            "Lower --input-tokens or --output-tokens, or deploy it with a longer --max-model-len.",
        )


def probe(target: Target, ask: Ask) -> float:
    """One request as those of the load; the seconds it took.

    Raises:
        ChutesError: it was refused, with what the server says of it.
    """
    body = {"model": target.address.model, **msgspec.json.decode(ask.body)}
    began = time.monotonic()
    answer = _request(target, "POST", ask.path, body)
    _refused(target, answer)
    said = _said(answer)
    if answer.status_code == 404:
        raise NotFound(f"{target.name} does not serve {ask.path}: {said}", "Choose another --workload.")
    if answer.status_code != 200:
        fix = "Leave out --force, which not every server knows." if "ignore_eos" in said else ""
        if "context" in said or "max_model_len" in said or "maximum" in said:
            fix = "Lower --input-tokens or --output-tokens."
        raise UsageError(f"{target.name} refuses a request of the load ({answer.status_code}): {said}", fix)
    return time.monotonic() - began


def _request(target: Target, method: str, path: str, body: Any = None) -> httpx2.Response:
    key = target.address.key
    try:
        return httpx2.request(
            method,
            target.url(path),
            json=body,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(ANSWER_SECONDS, connect=10.0),
            verify=target.address.verify,
            trust_env=False,
        )
    except httpx2.HTTPError as error:
        own = target.deployed is not None
        fix = (
            "`chutes ps` shows what runs, `chutes logs` why not." if own else "Start it, or correct the URL."
        )
        raise PlatformUnreachable(
            f"Nobody answers for {target.name} at {url_of(target.address)}: {error}.", fix
        ) from None


def _refused(target: Target, answer: httpx2.Response) -> None:
    if answer.status_code in (401, 403):
        raise AuthenticationRequired(
            f"{target.name} ({url_of(target.address)}) does not take this key: {_said(answer)}",
            "Give its key with --key KEY, or in OPENAI_API_KEY.",
        )


def _said(answer: httpx2.Response) -> str:
    from benchmarks.harness.answers import shortened

    return shortened(answer.content) or answer.reason_phrase
