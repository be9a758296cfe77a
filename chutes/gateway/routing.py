"""Which chute a request means, and which of its paths. Pure: built from a table, then only read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal, NamedTuple

from chutes import wire
from chutes.chute import agreed
from chutes.gateway.access import may_invoke
from chutes.gateway.answers import Refusal

OPENAI_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/audio/speech",
    "/v1/messages",
    "/v1/moderations",
    "/v1/rerank",
    "/v1/score",
    "/tokenize",
    "/detokenize",
)
"""Known to be inference even when no chute serves them, so that a caller hears which paths there are."""

MODELS_PATHS = (b"/v1/models", b"/models")


CALLS = agreed.CALLS.encode()

MAX_NAMES = 16
MAX_MODEL_CHARS = 2000
"""Bounds on a list of names; the published platform's aliases stand for up to 20 chutes, of 64 characters."""

MAX_HINTS = 5
"""Slugs that are named to somebody who missed one."""

PROVIDER = "chutes/"
"""LiteLLM's prefix for this provider. It takes it off itself; other clients copy it from its
documentation."""
CONFIDENTIAL = "-tee"
"""The published platform's suffix for a model in a confidential machine. Examples everywhere have it."""

SUFFIXES = frozenset({"latency", "throughput", "thinking"})

Preference = Literal["", "latency", "throughput"]


def spellings(path: str) -> list[str]:
    """The ways to write a public path: with and without `/v1`, with and without a last slash.

    LiteLLM appends `/chat/completions` to whatever base it was given, so both bases must work.
    """
    twin = path.removeprefix("/v1") if path.startswith("/v1/") else "/v1" + path
    return [path, path.rstrip("/") + "/", twin, twin.rstrip("/") + "/"]


class Destination:
    """One route, prepared for look-ups."""

    __slots__ = ("calls", "inner", "methods", "own", "route")

    def __init__(self, route: wire.Route) -> None:
        self.route = route
        self.inner: dict[bytes, bytes] = {}
        """Public path as a client may spell it → the instance's path. Exact spellings win over twins."""
        for public, inner in route.paths.items():
            for spelling in spellings(public):
                self.inner.setdefault(spelling.encode(), inner.encode())
        self.inner.update({public.encode(): inner.encode() for public, inner in route.paths.items()})
        self.own = bool(route.methods)
        """It is its author's own code: its paths are its own affair, and its bodies too."""
        self.methods: dict[bytes, tuple[bytes, ...]] = {}
        """Public path → what it is asked with; a path that is not here, with POST."""
        for public, methods in route.methods.items():
            for spelling in spellings(public):
                self.methods.setdefault(spelling.encode(), tuple(method.encode() for method in methods))
        self.calls = {path.encode(): CALLS + path.encode() for path in route.calls}
        """Path of a function as it is called from Python → the instance's path."""
        self.inner.update({inner: inner for inner in self.calls.values()})


class Resolved(NamedTuple):
    """What a request's `model` means."""

    destinations: tuple[Destination, ...]
    """The chutes that may answer, best first; never empty."""
    thinking: bool = False
    """A name had the suffix `:THINKING`."""
    preference: Preference = ""
    """How to order the destinations: as they stand, by time to first token, or by tokens per second."""


class Routes:
    """The routes of one table, by model name, host and path."""

    def __init__(self, routes: list[wire.Route]) -> None:
        self.routes = routes
        self._exact: dict[str, Destination] = {}
        self._folded: dict[str, Destination] = {}
        destinations = [Destination(route) for route in routes]
        # Names first: a name that looks like another's id is still a name.
        for names in (_name, _chute_id, _aliases, _slug):
            for destination in destinations:
                for name in names(destination.route):
                    self._exact.setdefault(name, destination)
        for name, destination in self._exact.items():
            self._folded.setdefault(name.casefold(), destination)
        self._resolved = {name: Resolved((destination,)) for name, destination in self._exact.items()}
        self._called = {
            destination.route.chute_id.encode(): destination
            for destination in destinations
            if destination.calls
        }
        self._slugs = {
            destination.route.slug.encode(): destination
            for destination in reversed(destinations)
            if destination.route.slug
        }
        self.inference_paths = {spelling.encode() for path in OPENAI_PATHS for spelling in spellings(path)}
        self.inference_paths.update(
            path for destination in destinations if not destination.own for path in destination.inner
        )
        """Paths that belong to chutes, and never to the control API."""

    def find(self, name: str) -> Destination | None:
        """The chute of one name: its own, its id, an alias or its slug. Case matters only between two
        chutes."""
        return self._exact.get(name) or self._folded.get(name.casefold())

    def is_name(self, model: str) -> bool:
        """Whether this is how a chute is called, letter for letter."""
        return model in self._resolved

    def resolve(self, model: str) -> Resolved | None:
        """What `model` means; None if nothing.

        That is one name, or several with commas between, to be tried in this order. Names that nothing has
        are passed over as long as another is known. Each may end in `:latency`, `:throughput` or
        `:THINKING`, which hold for all of them; a chute whose name ends so comes first.

        `chutes/` before a name is taken off, and so is `-TEE` after it where no chute has that name itself:
        the published platform serves `deepseek-ai/DeepSeek-V3.2-TEE`, here that is
        `deepseek-ai/DeepSeek-V3.2`.

        Raises:
            Refusal: 400, the list is too long.
        """
        known = self._resolved.get(model)
        if known is not None:
            return known
        if len(model) > MAX_MODEL_CHARS or model.count(",") >= MAX_NAMES:
            raise Refusal(
                400,
                "too_many_models",
                f"'model' may list {MAX_NAMES} names and have {MAX_MODEL_CHARS} characters.",
                "Name fewer models.",
                param="model",
            )
        whole = self.find(model)
        if whole is not None:
            return Resolved((whole,))
        found: dict[Destination, None] = {}
        thinking = False
        preference: Preference = ""
        for name in model.split(","):
            destination, suffixes = self._one(name.strip())
            thinking = thinking or "thinking" in suffixes
            if "latency" in suffixes:
                preference = "latency"
            elif "throughput" in suffixes:
                preference = "throughput"
            if destination is not None:
                found.setdefault(destination)
        return Resolved(tuple(found), thinking, preference) if found else None

    def _one(self, name: str) -> tuple[Destination | None, list[str]]:
        """The chute of one name with its suffixes, and these in lower case."""
        suffixes: list[str] = []
        while True:
            bare = name[len(PROVIDER) :] if name.casefold().startswith(PROVIDER) else name
            found = self.find(name) or self.find(bare)
            if found is None and bare.casefold().endswith(CONFIDENTIAL):
                found = self.find(bare[: -len(CONFIDENTIAL)])
            head, colon, suffix = name.rpartition(":")
            if found is not None or not colon or suffix.casefold() not in SUFFIXES:
                return found, suffixes
            suffixes.append(suffix.casefold())
            name = head

    def by_host(self, host: bytes) -> Destination | None:
        """The chute whose slug is the first label of this `Host`: `{slug}.anything`, with or without a
        port."""
        if not self._slugs:
            return None
        label, dot, _ = host.partition(b".")
        return self._slugs.get(label.lower()) if dot else None

    def by_path(self, path: bytes) -> tuple[Destination, bytes] | None:
        """For `/{slug}/rest`: the chute, and `/rest`, which is to be looked up among its public paths.

        Ask only about paths that are nothing else: a slug must not take one from the gateway or from control.
        """
        slug, slash, rest = path[1:].partition(b"/")
        destination = self._slugs.get(slug) if slash else None
        return (destination, b"/" + rest) if destination is not None else None

    def by_call(self, path: bytes) -> tuple[Destination, bytes] | None:
        """For `/chutes/{chute_id}/fn` where the chute has that function: the chute and the instance's path.

        Whatever it has no function for is the control API's.
        """
        if not path.startswith(b"/chutes/"):
            return None
        id_, slash, function = path[len(b"/chutes/") :].partition(b"/")
        destination = self._called.get(id_)
        inner = destination.calls.get(slash + function) if destination is not None else None
        return None if destination is None or inner is None else (destination, inner)

    def no_such_address(self, path: bytes, key: wire.Key) -> Refusal:
        """The refusal for a path that is neither a chute's nor the platform's, naming what it may have meant
        (only what the key may see)."""
        if path.startswith(b"/v1/"):
            return no_such_path(path, None)
        slugs = {route.slug: route for route in self.visible(key) if route.slug}
        spelled = path.decode("ascii", "replace")
        slug, _, rest = spelled[1:129].partition("/")
        if slug in slugs:
            return no_such_path(path, slugs[slug])
        near = near_matches(slug, slugs)
        if near:
            hint = f"Did you mean {' or '.join(f'/{one}/{rest}' for one in near)}?"
        elif slugs:
            more = ", …" if len(slugs) > MAX_HINTS else ""
            hint = f"Chutes are below /{', /'.join(sorted(slugs)[:MAX_HINTS])}{more}; `chutes ps` shows them."
        else:
            hint = "GET /v1/models lists the chutes."
        return Refusal(404, "path_not_found", f"There is nothing at {_short(spelled)}.", hint)

    def visible(self, key: wire.Key) -> list[wire.Route]:
        """The routes that a key may invoke."""
        return [route for route in self.routes if may_invoke(key, route.chute_id)]

    def no_such_model(self, model: str, key: wire.Key) -> Refusal:
        """The refusal for an unknown model, naming what it may have meant (only what the key may see)."""
        # difflib is quadratic in what it compares, and the name comes from a stranger.
        near = near_matches(model[:128], (route.name for route in self.visible(key)))
        hint = (
            f"Did you mean {' or '.join(map(repr, near))}?" if near else "GET /v1/models lists what there is."
        )
        return Refusal(
            404, "model_not_found", f"There is no model {_short(model)} here.", hint, param="model"
        )


def _name(route: wire.Route) -> list[str]:
    return [route.name]


def _chute_id(route: wire.Route) -> list[str]:
    return [route.chute_id]


def _aliases(route: wire.Route) -> list[str]:
    return route.aliases


def _slug(route: wire.Route) -> list[str]:
    return [route.slug] if route.slug else []


def no_such_path(path: bytes, route: wire.Route | None) -> Refusal:
    """The refusal for an inference path that the addressed chute, or any, does not serve."""
    spelled = _short(path.decode("ascii", "replace"))
    if route is None:
        return Refusal(
            404, "path_not_found", f"No chute serves {spelled}.", "GET /v1/models lists the chutes."
        )
    paths = ", ".join(sorted(route.paths)) or "no path"
    return Refusal(404, "path_not_found", f"{route.name!r} does not serve {spelled}.", f"It serves {paths}.")


def near_matches(name: str, names: Iterable[str]) -> list[str]:
    """Up to three names that look like `name`, by the whole name or by its part after the slash."""
    folded = {known.casefold(): known for known in names}
    last = {known.rpartition("/")[2]: full for known, full in folded.items()}
    wanted = name.casefold()
    close = [folded[match] for match in difflib.get_close_matches(wanted, folded, cutoff=0.6)]
    close += [last[match] for match in difflib.get_close_matches(wanted.rpartition("/")[2], last, cutoff=0.7)]
    return list(dict.fromkeys(close))[:3]


def _short(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "…")
