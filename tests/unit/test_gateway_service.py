"""Decisions of the gateway: keys, models, paths, refusals, and the choice of an instance."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes import wire
from chutes.board import Board
from chutes.gateway import limits
from chutes.gateway.answers import Answer, Refusal
from chutes.gateway.balance import least_loaded
from chutes.gateway.exchange import Exchange
from chutes.gateway.http import parse_request_head
from chutes.gateway.orders import Order
from chutes.gateway.service import Service
from chutes.gateway.surface import peek
from chutes.gateway.upstream import Upstreams, hopeless

PATHS = {
    "/v1/chat/completions": "/v1/chat/completions",
    "/tokenize": "/inner/tokenize",
    "/v1/tokenize": "/exact",
}


def upstream(name: str, port: int = 1) -> wire.Upstream:
    return wire.Upstream(name, "127.0.0.1", port, f"sk-{name}")


def route(name: str, chute_id: str, *upstreams: wire.Upstream, phase: str = "ready") -> wire.Route:
    return wire.Route(chute_id, name, PATHS, list(upstreams), phase, f"It is {phase}.", 1, "vllm", 4096)


TABLE = wire.Table(
    routes=[
        route("org/Alpha", "id-alpha", upstream("a")),
        route("org/ALPHA-two", "id-two", upstream("b")),
        route("id-alpha-twin", "id-three", phase="loading"),
        route("org/Broken", "id-four", phase="failed"),
    ],
    keys=[
        wire.Key("1", wire.key_digest("all")),
        wire.Key("2", wire.key_digest("one"), chute_ids=["id-two"]),
        wire.Key("3", wire.key_digest("old"), expires=100.0),
        wire.Key("4", wire.key_digest("admin"), admin=True),
    ],
    control=upstream("control"),
)


@pytest.fixture
def service() -> Service:
    service = Service(1000)
    service.swap(TABLE)
    return service


def ask(
    service: Service,
    path: str = "/v1/chat/completions",
    *,
    model: object = "org/Alpha",
    method: str = "POST",
    auth: str = "Authorization: Bearer all",
    now: float = 50.0,
    body: bytes | None = None,
) -> Answer | Order:
    head = parse_request_head(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{auth or 'X: y'}".encode())
    return service.serve(head, msgspec.json.encode({"model": model}) if body is None else body, now)


def refused(service: Service, *arguments: str, **settings: object) -> Refusal:
    with pytest.raises(Refusal) as caught:
        ask(service, *arguments, **settings)  # type: ignore[arg-type]
    error = json.loads(caught.value.body())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return caught.value


@pytest.mark.parametrize(
    ("model", "instance"),
    [("org/Alpha", "a"), ("org/alpha", "a"), ("ORG/ALPHA-TWO", "b"), ("id-alpha", "a"), ("ID-TWO", "b")],
)
def test_models_are_found_by_name_and_id_whatever_their_case(
    service: Service, model: str, instance: str
) -> None:
    order = ask(service, model=model)
    assert isinstance(order, Order)
    assert order.group.instances[0].upstream.instance_id == instance


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/v1/chat/completions", b"POST /v1/chat/completions"),
        ("/chat/completions", b"POST /v1/chat/completions"),
        ("/chat/completions/", b"POST /v1/chat/completions"),
        ("/v1/chat/completions/?a=b", b"POST /v1/chat/completions?a=b"),
        ("/tokenize", b"POST /inner/tokenize"),
        ("/v1/tokenize", b"POST /exact"),
    ],
)
def test_paths_with_and_without_v1(service: Service, path: str, line: bytes) -> None:
    order = ask(service, path)
    assert isinstance(order, Order)
    assert order.head.startswith(line + b" HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "auth",
    [
        "Authorization: Bearer all",
        "Authorization: Basic all",
        "Authorization: all",
        "authorization:  bearer   all",
        "X-API-Key: all",
        "x-api-key: all",
    ],
)
def test_a_key_may_come_in_several_headers(service: Service, auth: str) -> None:
    assert isinstance(ask(service, auth=auth), Order)


@pytest.mark.parametrize(
    ("auth", "status", "code"),
    [
        ("", 401, "missing_api_key"),
        ("Authorization:", 401, "missing_api_key"),
        ("Authorization: Bearer nope", 401, "invalid_api_key"),
        ("Authorization: Bearer old", 401, "expired_api_key"),
        ("Authorization: Bearer one", 403, "model_not_allowed"),
    ],
)
def test_wrong_keys(service: Service, auth: str, status: int, code: str) -> None:
    refusal = refused(service, auth=auth, now=100.0)
    assert (refusal.status, refusal.code) == (status, code)
    assert "nope" not in refusal.body().decode()
    if status == 401:
        assert "chutes keys create --name NAME" in refusal.fix


def test_a_key_is_good_until_it_expires(service: Service) -> None:
    assert isinstance(ask(service, auth="X-API-Key: old", now=99.9), Order)


def test_an_unknown_model_is_told_of_near_ones_that_the_key_may_call(service: Service) -> None:
    refusal = refused(service, model="org/Alfa")
    assert (refusal.status, refusal.code, refusal.param) == (404, "model_not_found", "model")
    assert "'org/Alpha'" in refusal.fix
    assert "'org/Alpha'" not in refused(service, model="org/Alfa", auth="X-API-Key: one").fix
    assert "'org/Alpha'" in refused(service, model="alpha").fix
    assert len(refused(service, model="x" * 900).message) < 200


def test_a_chute_without_instances_is_waited_for_unless_it_has_failed(service: Service) -> None:
    starting, broken = ask(service, model="id-alpha-twin"), ask(service, model="org/Broken")
    assert isinstance(starting, Order)
    assert isinstance(broken, Order)
    assert hopeless(starting.group.route) is None
    refusal = hopeless(broken.group.route)
    assert refusal is not None
    assert (refusal.status, refusal.code) == (503, "chute_not_ready")
    assert refusal.headers == b"x-should-retry: false\r\n"
    assert "It is failed." in refusal.message


@pytest.mark.parametrize(
    ("body", "param", "word"),
    [
        (b"{}", "model", "no 'model'"),
        (b'{"model":3}', "model", "string"),
        (b'{"model":null}', "model", "string"),
        (b'{"messages":[{"model":"org/Alpha"}]}', "model", "no 'model'"),
        (b"[1]", None, "object"),
        (b'"x"', None, "object"),
        (b"", None, "byte 0"),
        (b'{"model":"a"', None, "byte 12"),
        (b'{"model":"a","x":nul}', None, "byte 18"),
        (b'{"model":"a"}x', None, "(byte "),
        (b'{"model":"\xff"}', None, "UTF-8"),
        (b'{"a":' + b"[" * 900_000, None, "deep"),
        (b"--boundary", None, "not valid JSON"),
    ],
)
def test_bodies_that_name_no_model(body: bytes, param: str | None, word: str) -> None:
    with pytest.raises(Refusal) as caught:
        peek(body)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert word in caught.value.message


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.just("model"), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.text(), st.booleans(), st.booleans())
def test_the_peek_sees_the_top_level_only(
    rest: dict[str, object], model: str, stream: bool, first: bool
) -> None:
    mine = {"model": model, "stream": stream}
    rest = {key: value for key, value in rest.items() if key not in mine}
    body = json.dumps(mine | rest if first else rest | mine).encode()
    found = peek(body)
    assert (found.model, found.stream) == (model, stream)


@pytest.mark.parametrize(
    ("path", "method", "auth", "status"),
    [
        ("/v1/chat/completions", "GET", "all", 405),
        ("/v1/models", "POST", "all", 405),
        ("/ping", "DELETE", "", 405),
        ("/v1/embeddings", "POST", "all", 404),
        ("/v1/embeddings", "POST", "admin", 404),
        ("/v1/anything", "POST", "all", 404),
        ("/v1/anything", "GET", "all", 404),
        ("//v1/chat/completions", "POST", "all", 404),
        ("/nothing", "GET", "all", 404),
        ("/nothing/here", "POST", "all", 404),
        ("/nothing/here", "DELETE", "admin", 404),
        ("/nothing", "GET", "", 401),
        ("/chutes/", "GET", "all", 403),
        ("/chutes/", "GET", "", 401),
        ("/v1/models/org/None", "GET", "all", 404),
        ("/v1/models/org/Alpha", "GET", "one", 404),
    ],
)
def test_paths_that_are_not_for_this_request(
    service: Service, path: str, method: str, auth: str, status: int
) -> None:
    assert refused(service, path, method=method, auth=auth and f"X-API-Key: {auth}").status == status


def test_a_path_that_the_chute_does_not_serve_names_those_that_it_does(service: Service) -> None:
    assert "/v1/chat/completions" in refused(service, "/v1/embeddings").fix


def test_everything_else_goes_to_control_for_admins(service: Service) -> None:
    order = ask(service, "/chutes/a%20b?x=1", method="DELETE", auth="X-API-Key: admin", body=b"")
    assert isinstance(order, Order)
    assert order.head.startswith(b"DELETE /chutes/a%20b?x=1 HTTP/1.1\r\n")
    assert order.group.instances[0].upstream.instance_id == "control"
    assert not order.repeatable


def test_models(service: Service) -> None:
    def listed(auth: str, path: str = "/v1/models") -> list[str]:
        answer = ask(service, path, method="GET", auth=f"X-API-Key: {auth}")
        assert isinstance(answer, Answer)
        return [entry["id"] for entry in json.loads(answer.body)["data"]]

    assert len(listed("all")) == 4
    assert listed("one", "/models/") == ["org/ALPHA-two"]
    answer = ask(service, "/v1/models/org%2FAlpha", method="GET")
    assert isinstance(answer, Answer)
    entry = json.loads(answer.body)
    assert entry["id"] == "org/Alpha"
    assert entry["object"] == "model"
    assert (entry["chute_id"], entry["max_model_len"], entry["state"]) == ("id-alpha", 4096, "ready")
    loading = ask(service, "/models/id-alpha-twin", method="GET")
    assert isinstance(loading, Answer)
    assert json.loads(loading.body)["state"] == "loading"


def test_engines_get_no_secrets(service: Service) -> None:
    head = parse_request_head(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer all\r\nCookie: c\r\n"
        b"X-API-Key: k\r\nAccept-Encoding: gzip\r\nContent-Type: application/json\r\nTraceparent: t\r\n"
        b"Connection: keep-alive"
    )
    order = service.serve(head, b'{"model":"org/Alpha"}', 0)
    assert isinstance(order, Order)
    assert order.head == (
        b"POST /v1/chat/completions HTTP/1.1\r\n"
        b"Content-Type: application/json\r\nTraceparent: t\r\nContent-Length: 21\r\n"
    )


def test_before_the_first_table() -> None:
    assert refused(Service(1)).status == 503


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(0, 1000))
def test_the_least_loaded_is_chosen(loads: list[int], turn: int) -> None:
    assert loads[least_loaded(loads, turn)] == min(loads)


def test_equals_take_turns() -> None:
    assert {least_loaded([2, 1, 1, 3, 1], turn) for turn in range(3)} == {1, 2, 4}


def test_a_swap_keeps_the_instances_that_stay() -> None:
    upstreams: Upstreams[Exchange] = Upstreams(Board(Board.create(rows=1).fd, row=0))
    a, b, c = upstream("a"), upstream("b"), upstream("c")
    upstreams.swap(wire.Table([route("m", "m", a, b)], []), 1.0)
    group = upstreams.group("m")
    old_a, old_b = group.instances
    old_b.begin()
    upstreams.swap(wire.Table([route("m", "m", b, c)], []), 2.0)
    assert upstreams.group("m") is group
    assert group.instances[0] is old_b
    assert (old_b.in_flight, old_a.retired) == (1, True)
    assert group.instances[1].since == 2.0, "new, so eased in"
    upstreams.swap(wire.Table([], []), 3.0)
    assert old_b.retired
    assert group.instances == []


# ------------------------------------------------------------------------------- pictures kept by an instance


@pytest.fixture
def drawing() -> Service:
    paths = {"/v1/images/generations": "/v1/images/generations", "/generate": "/generate"}
    draws = wire.Route(
        "id-draws", "draws", paths, [upstream("i-1"), upstream("i-2")], "ready", "", 1, "diffusers",
        slug="me-draws", capabilities=["images"],
    )  # fmt: skip
    chats = wire.Route(
        "id-chats",
        "chats",
        PATHS,
        [upstream("i-3")],
        "ready",
        "",
        1,
        "vllm",
        slug="me-chats",
        capabilities=["chat"],
    )
    service = Service(1000)
    service.swap(wire.Table(routes=[draws, chats], keys=TABLE.keys))
    return service


def test_a_picture_is_fetched_without_a_key_from_the_instance_that_has_it(drawing: Service) -> None:
    for instance in ("i-1", "i-2"):
        order = ask(drawing, f"/me-draws/images/{instance}.abc", method="GET", auth="", body=b"")
        assert isinstance(order, Order)
        assert order.only is not None
        assert order.only.upstream.instance_id == instance
        assert order.head.startswith(b"GET /images/%b.abc HTTP/1.1\r\n" % instance.encode())
        assert "abc" not in order.standing.path  # it is as good as a key, and paths are logged
    refusal = refused(drawing, "/me-draws/images/i-9.abc", method="GET", auth="", body=b"")
    assert (refusal.status, refusal.code) == (404, "no_such_image")


def test_only_so_many_pictures_are_fetched_at_once(drawing: Service) -> None:
    first = drawing.upstreams.group("id-draws").instances[0]
    for _ in range(limits.KEPT_AT_ONCE):
        first.begin()
    refusal = refused(drawing, "/me-draws/images/i-1.abc", method="GET", auth="", body=b"")
    assert (refusal.status, refusal.code) == (429, "too_many_pictures")
    first.end()
    assert isinstance(ask(drawing, "/me-draws/images/i-1.abc", method="GET", auth="", body=b""), Order)


def test_nothing_else_is_fetched_so(drawing: Service) -> None:
    for path in ("/me-chats/images/i-3.abc", "/me-draws/generate", "/me-draws/metrics", "/images/i-1.abc"):
        assert refused(drawing, path, method="GET", auth="", body=b"").status in (401, 405)
    assert refused(drawing, "/me-draws/images/i-1.abc", auth="", body=b"{}").status == 401


def test_an_instance_that_draws_hears_where_its_pictures_are_found(drawing: Service) -> None:
    def told(host: str, path: str, body: bytes, more: str = "") -> bytes:
        text = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer all{more}"
        order = drawing.serve(parse_request_head(text.encode()), body, 50.0)
        assert isinstance(order, Order)
        lines = order.head.split(b"\r\n")
        return b"".join(line for line in lines if line.startswith(b"X-Chutes-Images"))

    named = b'{"model":"draws"}'
    line = b"X-Chutes-Images: http://here:80/me-draws/images/"
    assert told("here:80", "/v1/images/generations", named) == line
    assert told("here:80", "/me-draws/v1/images/generations", b"{}") == line
    by_host = b"X-Chutes-Images: http://me-draws.here/images/"
    assert told("me-draws.here", "/v1/images/generations", b"{}") == by_host
    proxied = "\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: example.org"
    line = b"X-Chutes-Images: https://example.org/me-draws/images/"
    assert told("here", "/v1/images/generations", named, proxied) == line
    assert told('x"y', "/v1/images/generations", named) == b""
    assert told("here", "/v1/chat/completions", b'{"model":"chats"}') == b""
