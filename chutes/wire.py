"""What control and gateway say to each other: the route table one way, events the other.

Control publishes a whole `Table` whenever anything in it changes; a worker swaps its table in one
assignment and answers from memory. Messages travel as one JSON document per line over a socket pair
that the worker inherits, so its end of file also tells a worker that control has gone.
"""

from __future__ import annotations

import hashlib

import msgspec

OWN_PATHS = frozenset(
    {
        *("api_keys", "bundles", "chutes", "health", "instances", "jobs", "metrics", "model_aliases"),
        *("models", "ping", "prices", "secrets", "shutdown", "usage"),
    }
)
"""First segments of the platform's own paths: no chute has one of them as its slug. What is below any other
is nobody's, or a chute's."""


class Upstream(msgspec.Struct, frozen=True):
    """One ready instance of a chute, or the control API itself."""

    instance_id: str
    host: str
    port: int
    api_key: str
    """Sent as `Authorization: Bearer` to the instance, in place of the client's key."""
    slot: int = 0
    """Where its requests in flight are counted; see `board.py`. An instance keeps it for life."""


class Price(msgspec.Struct, frozen=True):
    """US dollars per million tokens."""

    prompt: float = 0.0
    completion: float = 0.0
    cached: float = 0.0
    """For prompt tokens that the engine had in its cache; they are not charged as `prompt` too."""


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
    methods: dict[str, list[str]] = {}
    """Of a chute that is its author's own code: public path → methods. Such a chute is reached by host or
    path; by model name only at the paths that are OpenAI's, with POST. Empty beside an engine."""
    calls: list[str] = []
    """Paths that are called from Python: POST to `/chutes/{chute_id}{path}`; in the instance they lie below
    `chute.agreed.CALLS`."""
    aliases: list[str] = []
    """Further names that a request may say instead of `name`."""
    slug: str = ""
    """First label of a host name, and first segment of a path, that mean this chute: `{slug}.host/path`
    and `/{slug}/path`."""
    concurrency: int | None = None
    """Requests that one instance gets at once; None: no limit. Beyond it they wait in the gateway."""
    capabilities: list[str] = []
    """What the engine was started to do: `chat`, `completions`, `embeddings`, `images`, `tools`,
    `json_schema`, `reasoning` (it separates thoughts from the answer), `vision`, `harmony` (gpt-oss: it
    always thinks, and knows the efforts low, medium and high only)."""
    price: Price = Price()
    slot: int = 0
    """Where those who wait for it are counted; see `board.py`."""
    asleep: bool = False
    """No instance runs because nobody asked for long: a request wakes the chute (`Wake`) and waits."""


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
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt and completion together, counted when an answer ends."""
    concurrency: int | None = None
    """Requests in flight at once, over all workers."""
    slot: int | None = None
    """Where its use is counted; see `board.py`. Only keys with a limit have one."""


class Table(msgspec.Struct, frozen=True):
    """The whole of what a worker serves from."""

    routes: list[Route]
    keys: list[Key]
    control: Upstream | None = None
    """Where requests that are not inference go, for admin keys."""
    anonymous: Key | None = None
    """Who a request from this machine is that has no known key; None: refused."""


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


class Wake(msgspec.Struct, frozen=True, tag="wake"):
    """Worker → control: a request waits for a chute that is asleep. Sent once per chute and second."""

    chute_id: str


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One request that has ended: what is metered, logged and counted of it. Never its content.

    Times are seconds; an empty string means that it never came so far.
    """

    request_id: str
    key_id: str
    chute_id: str
    instance_id: str
    """The one that answered, or was tried last."""
    method: str
    path: str
    """As asked for, without its query, 200 characters at most."""
    model: str
    """As asked for, 200 characters at most."""
    status: int
    """What the client was told; 499 when it had gone before anything could be said."""
    error: str
    """`error.code` of a refusal; `upstream_broke_off` or `client_gone` for a stream that was cut."""
    started: float
    """Unix time of the request's last byte."""
    queued: float
    """Waited for an instance to be free, or to wake."""
    first: float
    """Until the first byte of the answer went out (for a stream: its TTFT); 0 if none did."""
    duration: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Of the prompt tokens, those that the engine did not compute again."""
    chunks: int
    """Reads that brought parts of a stream; 0 for an answer in one piece."""
    retries: int
    stream: bool


class Usage(msgspec.Struct, frozen=True, tag="usage"):
    """Worker → control: the requests that ended since the last message, at most a second old."""

    records: list[Record]
    gaps: list[int] = []
    """How many gaps between chunks of a stream fell into each of `GAP_BUCKETS`, since the last message."""

    refused: list[tuple[int, str, int]] = []
    """Requests that were not let in since the last message: status, `error.code`, how many. Only counted, as
    a stranger can send any number of them."""


GAP_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Upper bounds in seconds; `Usage.gaps` has one more entry, for longer ones."""

FromWorker = Listening | UpstreamLost | Wake | Usage


def key_digest(key: str | bytes) -> str:
    """SHA-256 of a key, in hex.

    A plain fast hash is right here: a key carries 190 bits of randomness, so there is nothing to
    slow a guesser down from, and a worker pays this on every request.
    """
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()
