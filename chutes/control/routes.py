"""From the world to what the gateway serves from. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from chutes.chute.agreed import PAGES
from chutes.chute.spec import ChuteSpec
from chutes.control.listing import Listing
from chutes.control.reconcile import Deployment, Instance, World
from chutes.engine.lifecycle import Phase
from chutes.wire import OWN_PATHS, Key, Route, Table, Upstream

BETWEEN_TRIES = "waiting"
"""What clients and users see as the phase of a chute whose instance failed and whose next one is due:
requests wait for it."""


def table(
    world: World,
    keys: list[Key],
    control: Upstream,
    listings: Mapping[str, Listing],
    slots: Mapping[str, int],
    anonymous: Key | None = None,
) -> Table:
    """The whole route table: one route per deployment, ready or not.

    Args:
        listings: by chute id.
        slots: on the board, by instance id and chute id. An instance without one cannot be counted, and is
            left out.
        anonymous: who a request without a known key is; None: nobody.
    """
    routes = [
        _route(deployment, world, listings.get(id_, Listing()), slots)
        for id_, deployment in world.deployments.items()
    ]
    return Table(routes=routes, keys=keys, control=control, anonymous=anonymous)


def current(deployment: Deployment, instances: list[Instance]) -> Instance | None:
    """The instance that speaks for a deployment: the newest of its version, else the newest at all."""
    own = [instance for instance in instances if instance.version == deployment.version]
    return (own or instances or [None])[-1]


def _route(deployment: Deployment, world: World, listing: Listing, slots: Mapping[str, int]) -> Route:
    spec = deployment.spec
    instances = world.of(spec.uid)
    newest = current(deployment, instances)
    phase = str(newest.phase if newest else Phase.PREPARING)
    if phase == Phase.FAILED and spec.uid not in world.given_up:
        phase = BETWEEN_TRIES
    return Route(
        chute_id=spec.uid,
        name=spec.name,
        paths=_paths(spec) if spec.engine is not None else _own_paths(spec),
        methods=_methods(spec) if spec.engine is None else {},
        calls=[cord.path for cord in spec.cords] if spec.engine is None else [],
        upstreams=[
            Upstream(
                instance.id,
                instance.endpoint.host,
                instance.endpoint.port,
                instance.endpoint.api_key,
                slots[instance.id],
            )
            for instance in instances
            if instance.phase == Phase.READY
            and not instance.stopping
            and instance.endpoint
            and instance.id in slots
        ],
        phase=phase,
        detail=_detail(spec.name, newest),
        created=int(deployment.created),
        engine=deployment.plan.engine,
        max_model_len=newest.max_model_len if newest else None,
        capabilities=deployment.capabilities,
        aliases=listing.aliases,
        slug=listing.slug,
        concurrency=spec.concurrency,
        price=listing.price,
        slot=slots.get(spec.uid, 0),
        asleep=spec.uid in world.asleep,
    )


def _paths(spec: ChuteSpec) -> dict[str, str]:
    """Beside an engine."""
    return {
        cord.public_api_path: cord.passthrough_path or cord.path
        for cord in spec.cords
        # GET cords (the model list) are answered by the gateway itself, and code of the author's own
        # has no process to run in beside an engine yet.
        if cord.public_api_path
        and cord.public_api_method == "POST"
        and cord.passthrough
        and not _is_ours(cord.public_api_path)
    }


OPENAPI = PAGES[1]


def _own_paths(spec: ChuteSpec) -> dict[str, str]:
    """An author's own code is reached by slug or id, so that no path of it can be in anybody's way."""
    paths = {cord.public_api_path: cord.public_api_path for cord in spec.cords if cord.public_api_path}
    return {OPENAPI: OPENAPI, **paths}  # the other page is the gateway's: a browser has no key to send


def _methods(spec: ChuteSpec) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {page: ["GET"] for page in PAGES}
    for cord in spec.cords:
        path, method = cord.public_api_path, cord.public_api_method
        if path and method not in found.setdefault(path, []):
            found[path].append(method)
    return found


def _is_ours(path: str) -> bool:
    """Whether the gateway or the control API answers this path: taken by a cord, it would be gone for all."""
    return path.removeprefix("/v1").split("/")[1] in OWN_PATHS


def _detail(name: str, newest: Instance | None) -> str:
    """The sentence for a client that asks while nothing is ready. Stable while only progress moves."""
    if newest is None or newest.phase.starting:
        phase = newest.phase if newest else Phase.PREPARING
        return f"{name!r} is starting ({phase}). Try again in a moment; `chutes ps` shows how far it is."
    if newest.phase == Phase.FAILED and newest.reason:
        return f"{name!r} has failed: {newest.reason.summary} See `chutes logs {name}`."
    return f"{name!r} is {newest.phase}."
