"""What control and gateway say to each other: the route table one way, events the other.

Control publishes a whole `Table` whenever anything in it changes; a worker swaps its table in one
assignment and answers from memory. Messages travel as one JSON document per line over a socket pair
that the worker inherits, so its end of file also tells a worker that control has gone.
"""

from __future__ import annotations

import hashlib

import msgspec


class Upstream(msgspec.Struct, frozen=True):
    """One ready instance of a chute, or the control API itself."""

    instance_id: str
    host: str
    port: int
    api_key: str
    """Sent as `Authorization: Bearer` to the instance, in place of the client's key."""


class Route(msgspec.Struct, frozen=True):
    """Everything a worker needs to know of one chute."""

    chute_id: str
    name: str
    paths: dict[str, str]
    """Public path → the instance's path, e.g. `/v1/chat/completions` → `/v1/chat/completions`."""
    upstreams: list[Upstream]
    """Ready instances; empty while the chute starts, is stopped or has failed."""
    phase: str
    """Phase of the newest instance, for `/v1/models` and for the text of a 503."""
    detail: str
    """One sentence for a client that asks while `upstreams` is empty."""
    created: int
    """Unix seconds."""
    engine: str
    """`owned_by` in `/v1/models`: the engine's name."""
    max_model_len: int | None = None


class Key(msgspec.Struct, frozen=True):
    """One API key as workers know it: never the secret, only its digest."""

    key_id: str
    digest: str
    """`key_digest` of the whole key text."""
    admin: bool = False
    """May also use the control API through the gateway."""
    chute_ids: list[str] | None = None
    """The only chutes it may invoke; None means every chute."""
    expires: float | None = None
    """Unix seconds."""


class Table(msgspec.Struct, frozen=True):
    """The whole of what a worker serves from."""

    routes: list[Route]
    keys: list[Key]
    control: Upstream | None = None
    """Where requests that are not inference go, for admin keys."""


class Publish(msgspec.Struct, frozen=True, tag="table"):
    """Control → worker: serve from this from now on."""

    table: Table


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Control → worker: stop listening, finish what is in flight, exit."""

    seconds: float


ToWorker = Publish | Drain


class Listening(msgspec.Struct, frozen=True, tag="listening"):
    """Worker → control: the first table is in place and connections are accepted."""

    pid: int


class UpstreamLost(msgspec.Struct, frozen=True, tag="upstream_lost"):
    """Worker → control: an instance refused a connection or broke one off."""

    chute_id: str
    instance_id: str
    error: str


FromWorker = Listening | UpstreamLost


def key_digest(key: str | bytes) -> str:
    """SHA-256 of a key, in hex.

    A plain fast hash is right here: a key carries 190 bits of randomness, so there is nothing to
    slow a guesser down from, and a worker pays this on every request.
    """
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()
