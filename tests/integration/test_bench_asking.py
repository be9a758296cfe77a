"""A connection of the load client against servers that do one thing each."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from benchmarks.harness import asking
from benchmarks.harness.asking import Pool
from benchmarks.harness.loop import Limit, Loop, clock
from benchmarks.harness.messages import Address, Ask
from benchmarks.harness.records import Record
from benchmarks.harness.workloads import CHAT

GOOD = b'{"choices":[{"text":"a","finish_reason":"stop"}]}'
PATIENCE = 20.0

Serve = Callable[[socket.socket], None]


def answer(body: bytes = GOOD, head: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b" % (
        head, len(body), body,
    )  # fmt: skip


def request(connection: socket.socket) -> bytes:
    """The body of the next request; empty when there is none."""
    data = b""
    while b"\r\n\r\n" not in data:
        came = connection.recv(1 << 16)
        if not came:
            return b""
        data += came
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(1 << 16)
    return body


@contextlib.contextmanager
def served(serve: Serve, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A port where each connection is `serve`d in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket) -> None:
        # A client may hang up at any time: that is what some of these tests are about.
        with contextlib.suppress(OSError), connection:
            if tls is None:
                serve(connection)
            else:
                with tls.wrap_socket(connection, server_side=True) as secured:
                    serve(secured)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=[listener.accept()[0]], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


class Asker:
    """Asks one after the other, and waits for each."""

    def __init__(self, port: int, host: str = "127.0.0.1", tls: bool = False, verify: bool = True) -> None:
        self.loop = Loop()
        self.pool = Pool(self.loop, Address("e", host, port, tls, verify, "", "", "m"), timeout=PATIENCE)

    def prepare(self, count: int) -> None:
        self.pool.prepare(count)
        while self.pool.opening:
            self.loop.turn()

    def rest(self, seconds: float) -> None:
        """See to what comes, and ask nothing."""
        self.loop.at(clock() + seconds, lambda _: self.loop.stop())
        self.loop.run()

    def ask(self, said: bytes = b'{"prompt":"hi"}') -> Record:
        record = Record(0, "e", 0.0, 0.0)
        self.pool.ask(Ask(0, CHAT, said), record, lambda _: self.loop.stop())
        self.loop.run()
        return record


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[trustme.CA, ssl.SSLContext]:
    """An authority that nobody knows, and what a server of 127.0.0.1 has from it."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return authority, context


def echo_size(connection: socket.socket) -> None:
    while body := request(connection):
        connection.sendall(answer(GOOD[:-1] + b',"pad":"%b"}' % (b"x" * len(body))))


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_tls_carries_small_and_large_both_ways(certificates, monkeypatch, tmp_path: Path, size: int) -> None:
    authority, context = certificates
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with served(echo_size, context) as port:
        asker = Asker(port, tls=True)
        said = b'{"prompt":"%b"}' % (b"y" * size)
        for _ in range(3):
            record = asker.ask(said)
            assert (record.error, record.message, record.status) == ("", "", 200)


def test_a_certificate_that_nobody_knows(certificates) -> None:
    _, context = certificates
    with served(echo_size, context) as port:
        record = Asker(port, tls=True).ask()
        assert record.error == "unreachable"
        assert "certificate verify failed" in record.message
        assert Asker(port, tls=True, verify=False).ask().error == ""


def test_large_both_ways_without_tls() -> None:
    with served(echo_size) as port:
        asker = Asker(port)
        assert [asker.ask(b'{"prompt":"%b"}' % (b"y" * 5_000_000)).error for _ in range(2)] == ["", ""]


@pytest.mark.parametrize("tls", [False, True])
def test_connections_are_opened_beforehand_and_kept(certificates, tls: bool) -> None:
    """TLS too, whose server has something to say, but not to us, right after its handshake."""
    accepted: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        accepted.append(connection)
        echo_size(connection)

    with served(serve, certificates[1] if tls else None) as port:
        asker = Asker(port, tls=tls, verify=False)
        asker.prepare(5)
        asker.rest(0.3)
        assert [connection.closed for connection in asker.pool.idle] == [False] * 5
        assert [asker.ask().error for _ in range(10)] == [""] * 10
        assert len(accepted) == 5


def test_one_that_was_opened_beforehand_and_closed_unused_costs_nobody_anything() -> None:
    hung_up = threading.Event()

    def serve(connection: socket.socket) -> None:
        if not hung_up.is_set():
            hung_up.set()
        else:
            echo_size(connection)

    with served(serve) as port:
        asker = Asker(port)
        asker.prepare(1)
        hung_up.wait(5)
        time.sleep(0.1)  # its end is here, and nobody has read it yet
        assert asker.ask().error == ""


def test_the_second_address_is_tried_where_the_first_refuses() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as unused:
        nobody = unused.getsockname()[1]
    with served(echo_size) as port:
        asker = Asker(port)
        ((family, kind, protocol, name, _),) = asker.pool.places
        asker.pool.places = [(family, kind, protocol, name, ("127.0.0.1", nobody)), *asker.pool.places]
        assert asker.ask().error == ""


def test_a_name_that_nobody_has() -> None:
    asker = Asker(1, host="nobody.invalid")
    for _ in range(3):
        record = asker.ask()
        assert record.error == "unreachable"
        assert record.message


def test_a_server_that_never_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "CONNECT_SECONDS", 0.3)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as listener:
        port = listener.getsockname()[1]
        with contextlib.closing(socket.create_connection(("127.0.0.1", port))):  # the one that has room
            record = Asker(port).ask()
    assert (record.error, record.message) == ("unreachable", "no connection within 0.3 s")
    assert 0.29 < record.ended - record.sent < 5


def test_a_server_that_closes_after_each_answer() -> None:
    def serve(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(answer(head=b"Connection: close\r\n"))

    with served(serve) as port:
        asker = Asker(port)
        assert [asker.ask().error for _ in range(5)] == [""] * 5
        assert asker.pool.idle == []


def test_an_answer_that_ends_with_its_connection() -> None:
    def serve(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + GOOD)

    with served(serve) as port:
        assert Asker(port).ask().error == ""


def test_an_answer_before_all_was_sent_is_heard() -> None:
    """As 413 is said: the server answers, and reads no further."""

    def serve(connection: socket.socket) -> None:
        connection.recv(100)
        body = b'{"error":{"message":"too long"}}'
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        time.sleep(0.5)  # the answer is there before the connection breaks

    with served(serve) as port:
        record = Asker(port).ask(b'{"prompt":"%b"}' % (b"y" * 50_000_000))
    assert (record.error, record.message) == ("http_413", "too long")


def test_the_rest_of_a_request_that_was_answered_early_is_no_part_of_the_next() -> None:
    """A server that answers 429 at once, and then reads all of what it does not want."""
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        head = connection.recv(1000)
        if b"yyy" in head:
            body = b'{"error":{"message":"later"}}'
            connection.sendall(b"HTTP/1.1 429 Later\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            while connection.recv(1 << 20):
                pass
        else:
            seen.append(head)
            connection.sendall(answer())

    with served(serve) as port:
        asker = Asker(port)
        assert asker.ask(b'{"prompt":"%b"}' % (b"y" * 50_000_000)).error == "http_429"
        assert asker.ask(b'{"prompt":"short"}').error == ""
    assert [b"short" in one for one in seen] == [True]


def test_a_connection_that_is_gone_before_its_handshake(certificates, monkeypatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise ConnectionResetError(104, "Connection reset by peer")

    with served(echo_size, certificates[1]) as port:
        asker = Asker(port, tls=True, verify=False)
        with monkeypatch.context() as patch:
            patch.setattr(ssl.SSLContext, "wrap_socket", gone)
            assert asker.ask().error == "unreachable"
        assert asker.ask().error == "", "and the next one with its descriptor's number is well"


def test_an_answer_that_came_while_we_were_stuck_came_in_time() -> None:
    def serve(connection: socket.socket) -> None:
        request(connection)
        time.sleep(0.1)
        connection.sendall(answer())

    with served(serve) as port:
        asker = Asker(port)
        asker.prepare(1)
        asker.pool.flying = Limit(asker.loop, 0.3, asker.pool._time_is_up)
        asker.loop.at(clock() + 0.02, lambda _: time.sleep(0.6))
        assert asker.ask().error == ""


def test_a_server_that_speaks_unasked_is_not_listened_to() -> None:
    spoken = threading.Event()

    def serve(connection: socket.socket) -> None:
        if not spoken.is_set():
            request(connection)
            connection.sendall(answer())
            connection.sendall(answer(b'{"choices":[{"text":"never asked for","finish_reason":"stop"}]}'))
            spoken.set()
        echo_size(connection)

    with served(serve) as port:
        asker = Asker(port)
        first = asker.ask()
        spoken.wait(5)
        # Either both came at once, or the second is found when the connection is to be used again.
        assert first.error in ("", "protocol")
        asker.rest(0.0)
        assert asker.ask().error == ""
