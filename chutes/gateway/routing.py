"""Which chute a request means, and which of its paths. Pure: built from a table, then only read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from chutes import wire
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
)
"""Known to be inference even when no chute serves them, so that a caller hears which paths there are."""

MODELS_PATHS = (b"/v1/models", b"/models")


def spellings(path: str) -> list[str]:
    """The ways to write a public path: with and without `/v1`, with and without a last slash.

    LiteLLM appends `/chat/completions` to whatever base it was given, so both bases must work.
    """
    twin = path.removeprefix("/v1") if path.startswith("/v1/") else "/v1" + path
    return [path, path.rstrip("/") + "/", twin, twin.rstrip("/") + "/"]


class Destination:
    """One route, prepared for look-ups."""

    __slots__ = ("inner", "route")

    def __init__(self, route: wire.Route) -> None:
        self.route = route
        self.inner: dict[bytes, bytes] = {}
        """Public path as a client may spell it → the instance's path. Exact spellings win over twins."""
        for public, inner in route.paths.items():
            for spelling in spellings(public):
                self.inner.setdefault(spelling.encode(), inner.encode())
        self.inner.update({public.encode(): inner.encode() for public, inner in route.paths.items()})


class Routes:
    """The routes of one table, by model name and by path."""

    def __init__(self, routes: list[wire.Route]) -> None:
        self.routes = routes
        self._exact: dict[str, Destination] = {}
        self._folded: dict[str, Destination] = {}
        destinations = [Destination(route) for route in routes]
        for destination in destinations:  # names first: a name that looks like another's id is still a name
            self._exact.setdefault(destination.route.name, destination)
        for destination in destinations:
            self._exact.setdefault(destination.route.chute_id, destination)
            self._folded.setdefault(destination.route.name.casefold(), destination)
            self._folded.setdefault(destination.route.chute_id.casefold(), destination)
        self.inference_paths = {spelling.encode() for path in OPENAI_PATHS for spelling in spellings(path)}
        self.inference_paths.update(path for destination in destinations for path in destination.inner)
        """Paths that belong to chutes, and never to the control API."""

    def find(self, model: str) -> Destination | None:
        return self._exact.get(model) or self._folded.get(model.casefold())

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
