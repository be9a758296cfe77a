"""What a request gets: an answer from memory, a refusal, or an order to forward it.

Decisions only: no socket is touched here, and the time is passed in. The one thing that changes is the
table, and it changes as a whole.
"""

from __future__ import annotations

from itertools import pairwise
from time import monotonic
from typing import TYPE_CHECKING
from urllib.parse import unquote

from msgspec import UNSET

from chutes import wire
from chutes.board import Board
from chutes.chute import agreed
from chutes.config import is_loopback
from chutes.gateway import answers, limits
from chutes.gateway.access import Access, check_expiry, may_invoke
from chutes.gateway.answers import Answer, Refusal
from chutes.gateway.balance import prefix_key
from chutes.gateway.heads import RequestHeads
from chutes.gateway.http import RequestHead
from chutes.gateway.orders import JSON_BODY, KEPT, Aim, Order, Standing, keeps_pictures
from chutes.gateway.routing import MODELS_PATHS, Destination, Routes, no_such_path
from chutes.gateway.scores import Preference, Room, rank
from chutes.gateway.shapes import Peek
from chutes.gateway.surface import COMPLETION_PATHS, peek, rewrite
from chutes.gateway.upstream import Upstreams

if TYPE_CHECKING:
    from chutes.gateway.exchange import Exchange


FROM_ELSEWHERE = (b"origin", b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via")
"""Fields that a browser or a proxy adds to what others ask."""

POST = (b"POST",)
DOCS_PATH = agreed.PAGES[0].encode()

CONTROL_SEGMENTS = frozenset(segment.encode() for segment in wire.OWN_PATHS)

STATIC = {b"/": answers.WELCOME, b"/ping": answers.PING, b"/health": answers.HEALTHY}
NOBODY = wire.Key(key_id="", digest="")
"""Whose requests those are that need no key."""
MODEL_PREFIXES = tuple(path + b"/" for path in MODELS_PATHS)


class Service:
    """Serves one table after another.

    Args:
        max_body: bytes of the largest request body.
    """

    def __init__(self, max_body: int, board: Board | None = None) -> None:
        self.max_body = max_body
        self.heads = RequestHeads()
        self.board = board or Board(Board.create(rows=1).fd, row=0)
        self.upstreams: Upstreams[Exchange] = Upstreams(self.board)
        self._edition = object()
        """Another one with each table."""
        self._ready = False
        self._access = Access([])
        self._keyless = False
        self._routes = Routes([])
        self._all_models = answers.model_list([])

    def swap(self, table: wire.Table) -> None:
        """Serve from this table from the next request on."""
        now = monotonic()
        self.upstreams.swap(table, now)
        self._access = Access(table.keys, table.anonymous)
        self._keyless = table.anonymous is not None
        self._routes = Routes(table.routes)
        self._all_models = answers.model_list(table.routes)
        self._edition = object()
        self._ready = True
        # Whoever is refused by this may have sent its next request already, which is served at once: so last.
        self.upstreams.settle(now)

    def admit(self, request: RequestHead, length: int, now: float) -> Standing | Answer:
        """What the head alone decides, so that no body is read in vain.

        Returns: an answer from memory, or under which key the body is to be served.
        Raises: Refusal.
        """
        if not self._ready:
            raise answers.starting()
        if length > self.max_body:
            raise self.too_large()
        if self._keyless:
            _only_from_here(request)
        method, path = request.method, request.path
        destination, inner = self._address(request)
        inference = destination is not None or path in self._routes.inference_paths
        if not inference and method == b"POST" and path.startswith(b"/v1/"):
            inference = not _is_ours(path)
        if destination is not None and method == b"GET" and _is_kept(destination, inner):
            # Whoever has the URL may see the picture, as elsewhere: a page shows it, which has no key.
            standing = Standing(self._edition, request, NOBODY, True)
            standing.destination, standing.inner, standing.keeps = destination, inner, True
            standing.path = standing.path.rpartition("/")[0]  # its last part is as good as a key
            request.standing = standing
            return standing
        allowed = POST if destination is None else destination.methods.get(inner, POST)
        there = destination is None or inner in destination.inner or inner in destination.methods
        if destination is None and inference and method not in allowed:
            raise answers.wrong_method(b", ".join(allowed))
        if not inference and _is_ours(path):
            return self._from_memory(request, now)
        if (
            inner == DOCS_PATH
            and destination is not None
            and destination.own
            and inner not in destination.inner
            and method in allowed
        ):
            return answers.DOCS
        key = self._access.identify(request.credential, now)
        if destination is not None and (not there or method not in allowed):
            if not may_invoke(key, destination.route.chute_id):
                raise answers.not_allowed(destination.route)
            raise (
                answers.wrong_method(b", ".join(allowed)) if there else no_such_path(inner, destination.route)
            )
        if not inference and not _is_controls(path):
            raise self._routes.no_such_address(path, key)
        if not inference and not key.admin:
            raise Refusal(
                403,
                "admin_key_needed",
                "This key may call models but not manage the platform.",
                "Use an admin key (`chutes keys create --admin --name NAME`) or the command line.",
            )
        request.standing = standing = Standing(self._edition, request, key, inference)
        standing.destination, standing.inner = destination, inner
        self.heads.remember(request)
        return standing

    def _address(self, request: RequestHead) -> tuple[Destination | None, bytes]:
        """The chute that host or path names, and which of its public paths is meant."""
        path = request.path
        destination = self._routes.by_host(request.headers.get(b"host", b""))
        if destination is not None and not _is_ours(path):
            return destination, path
        if path in self._routes.inference_paths or _is_ours(path):
            return None, path
        called = self._routes.by_call(path) if request.method == b"POST" else None
        return called or self._routes.by_path(path) or (None, path)

    def serve(self, request: RequestHead, body: bytes, now: float) -> Answer | Order:
        """Decide on a whole request. Raises Refusal.

        Args:
            now: Unix time.
        """
        standing = request.standing
        if standing is None or standing.edition is not self._edition:
            admitted = self.admit(request, len(body), now)
            if isinstance(admitted, Answer):
                return admitted
            standing = admitted
        else:
            if len(body) > self.max_body:
                raise self.too_large()
            if standing.key.expires is not None:
                check_expiry(standing.key, now)
        if standing.inference:
            return self._inference(request, body, standing)
        group = self.upstreams.group(None)
        if not group.instances:
            raise Refusal(
                503, "control_not_ready", "The control API is not there.", headers=b"Retry-After: 1\r\n"
            )
        safe = request.method in (b"GET", b"HEAD")
        length = b"Content-Length: %d\r\n" % len(body) if body or not safe else b""
        head = b"%b %b%b HTTP/1.1\r\n%b%b" % (
            request.method,
            request.path,
            request.query,
            standing.fields,
            length,
        )
        order = Order(standing, group, "the control API", head, body)
        order.repeatable = safe
        return order

    def too_large(self) -> Refusal:
        """For a body over `max_body`; its rest will not be read, so the connection ends."""
        return Refusal(
            413,
            "body_too_large",
            f"The request body is over {self.max_body} bytes.",
            "Send less, or raise CHUTES_MAX_BODY_MIB where the platform runs.",
            close=True,
        )

    def _inference(self, request: RequestHead, body: bytes, standing: Standing) -> Order:
        if standing.destination is not None:
            return self._addressed(request, body, standing, standing.destination)
        peeked = peek(body)
        aim = standing.aims.get(peeked.model)
        if aim is not None:
            return _order(aim, standing, peeked, body)
        resolved = self._routes.resolve(peeked.model)
        if resolved is None:
            raise self._routes.no_such_model(peeked.model, standing.key)
        path, query = request.path, request.query
        thinking = True if resolved.thinking else standing.thinking
        if len(resolved.destinations) == 1:
            aim = self._aim(path, query, standing, resolved.destinations[0], thinking)
            if self._routes.is_name(peeked.model):
                standing.aims[peeked.model] = aim
            return _order(aim, standing, peeked, body)
        # Those that this key may not call, or that lack the path, are passed over like unknown names.
        orders: list[tuple[Order, str, Room]] = []
        now, refusals = monotonic(), []
        for destination in resolved.destinations:
            try:
                order = _order(
                    self._aim(path, query, standing, destination, thinking), standing, peeked, body
                )
            except Refusal as refusal:
                refusals.append(refusal)
            else:
                orders.append((order, destination.route.chute_id, order.group.room(now)))
        if not orders:
            raise refusals[0]
        scores = {id_: order.group.score for order, id_, _ in orders}
        ranked = rank(orders, Preference(resolved.preference), scores)
        for order, following in pairwise(ranked):
            order.otherwise = following
        return ranked[0]

    def _aim(
        self, path: bytes, query: bytes, standing: Standing, destination: Destination, thinking: bool | None
    ) -> Aim:
        """For one chute. Raises Refusal."""
        route, key = destination.route, standing.key
        if not may_invoke(key, route.chute_id):
            raise answers.not_allowed(route)
        inner = destination.inner.get(path)
        if inner is None:
            raise no_such_path(path, route)
        return Aim(standing, self.upstreams.group(route.chute_id), route, inner, query, thinking)

    def _addressed(
        self, request: RequestHead, body: bytes, standing: Standing, destination: Destination
    ) -> Order:
        """For a chute that host or path named: its body may be anything, but what is for an engine is
        treated as everywhere."""
        path = standing.inner
        if standing.keeps:
            return self._kept(standing, destination.route)
        inner = destination.inner.get(path)
        route = destination.route
        if destination.own:
            pass  # what it makes of a body is its own affair
        elif inner in COMPLETION_PATHS or (path in self._routes.inference_paths and _is_json(request)):
            try:
                peeked = peek(body)
            except Refusal as refusal:
                if refusal.code != "invalid_model":
                    raise
            else:
                aim = self._aim(path, request.query, standing, destination, standing.thinking)
                return _order(aim, standing, peeked, body)
        if not may_invoke(standing.key, route.chute_id):
            raise answers.not_allowed(route)
        if inner is None:
            raise no_such_path(path, route)
        fields = standing.fields.removeprefix(JSON_BODY) + standing.kept_at(route)
        method = request.method
        if body or method == b"POST":
            kind = request.headers.get(b"content-type", b"application/octet-stream")
            fields += b"Content-Type: %b\r\nContent-Length: %d\r\n" % (kind, len(body))
        head = b"%b %b%b HTTP/1.1\r\n%b" % (method, inner, request.query, fields)
        order = Order(standing, self.upstreams.group(route.chute_id), route.name, head, body)
        if destination.own:
            # Asked twice, an author's function may do twice what it does; a model only answers twice.
            order.repeatable = method == b"GET"
        return order

    def _kept(self, standing: Standing, route: wire.Route) -> Order:
        """For what one instance has made and keeps. Raises Refusal."""
        group = self.upstreams.group(route.chute_id)
        owner = standing.inner[len(KEPT) :].partition(b".")[0].decode("ascii", "replace")
        found = next((one for one in group.instances if one.upstream.instance_id == owner), None)
        if found is None:
            raise Refusal(404, "no_such_image", "There is no such picture here (any more).")
        if found.in_flight >= (group.capacity or 0) + limits.KEPT_AT_ONCE:
            message = f"{limits.KEPT_AT_ONCE} pictures are being fetched already."
            raise Refusal(429, "too_many_pictures", message, "Try again.", headers=b"Retry-After: 1\r\n")
        fields = standing.fields.removeprefix(JSON_BODY)
        head = b"GET %b HTTP/1.1\r\n%b" % (standing.inner, fields)
        order = Order(standing, group, route.name, head, b"")
        order.only = found
        return order

    def _from_memory(self, request: RequestHead, now: float) -> Answer:
        path = request.path
        static = STATIC.get(path)
        if request.method not in (b"GET", b"HEAD"):
            raise answers.wrong_method(b"GET, HEAD")
        if static is not None:
            return static
        key = self._access.identify(request.credential, now)
        if path.rstrip(b"/") in MODELS_PATHS:
            return (
                self._all_models if key.chute_ids is None else answers.model_list(self._routes.visible(key))
            )
        model = unquote(path.partition(b"models/")[2])
        destination = self._routes.find(model)
        if destination is None or not may_invoke(key, destination.route.chute_id):
            raise self._routes.no_such_model(model, key)
        return answers.model(destination.route)


def _is_ours(path: bytes) -> bool:
    """Whether this path is answered from memory."""
    return path in STATIC or path in MODELS_PATHS or path.startswith(MODEL_PREFIXES)


def _is_controls(path: bytes) -> bool:
    """Whether the control API may know this path."""
    return path[1:].partition(b"/")[0] in CONTROL_SEGMENTS


def _is_kept(destination: Destination, inner: bytes) -> bool:
    """Whether this path of a chute is one of a picture that it keeps."""
    return inner.startswith(KEPT) and keeps_pictures(destination.route)


def _only_from_here(request: RequestHead) -> None:
    """Where no key is asked for, a page in this machine's browser could ask too: by a name that it lets
    point here, or simply by posting to us. Raises Refusal."""
    host = request.headers.get(b"host", b"").decode("ascii", "replace")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if not is_loopback(name) or any(field in request.headers for field in FROM_ELSEWHERE):
        raise Refusal(
            403,
            "not_from_here",
            "Without keys only programs of this machine may ask, by a loopback address.",
            "Use http://127.0.0.1 and no browser, or start the platform without --no-auth.",
        )


def _order(aim: Aim, standing: Standing, peeked: Peek, body: bytes) -> Order:
    """Raises Refusal for a field that means nothing."""
    body, shows_usage = rewrite(
        body,
        peeked,
        model=aim.name,
        capabilities=aim.capabilities,
        thinking=aim.thinking,
        chat=aim.chat,
        completions=aim.completions,
    )
    head = b"%bContent-Length: %d\r\n" % (aim.head, len(body))
    group = aim.group
    order = Order(standing, group, aim.name, head, body)
    order.model = peeked.model
    if aim.own:
        order.repeatable = False  # as in `_addressed`
    if peeked.stream:  # 1 is true to engines too
        order.stream = True
        if not shows_usage:
            order.shows_usage = False
    if aim.twins:
        order.twins = True
    if aim.draws:
        order.draws = True
    if len(group.instances) > 1:
        said = peeked.prompt if peeked.messages is UNSET else peeked.messages
        if said is not UNSET:
            order.prefix = prefix_key(bytes(said))
    return order


def _is_json(request: RequestHead) -> bool:
    return b"json" in request.headers.get(b"content-type", b"json")
