"""What a stranger can do to a gateway worker, tried: what it answers, and what that costs it.

python -m benchmarks.gateway_abuse [--scale 1.0]

Writes docs/gateway-abuse.md. One worker, one synthetic engine, and this process as the attacker, on one
machine; so times are upper bounds, as all three share its cores.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from benchmarks.gateway_attack import (
    HIDDEN,
    MIB,
    PING,
    STATUS,
    Attack,
    Finding,
    drained,
    hidden_ways,
    post,
)
from chutes.gateway import limits
from tests.integration.conftest import MODEL, USER

REPORT = Path(__file__).parents[1] / "docs" / "gateway-abuse.md"


def slow_heads(attack: Attack) -> Finding:
    count, ends, began = attack.many(500), Counter[str](), time.monotonic()
    clients = [attack.connect() for _ in range(count)]
    with attack.neighbour() as times:
        waiting = set(clients)
        while waiting and time.monotonic() - began < limits.HEAD_SECONDS + 6:
            for client in list(waiting):
                client.settimeout(0.001)
                try:
                    client.sendall(b"G")
                    got = client.recv(1000)
                    ends[got[9:12].decode() or "closed"] += 1
                    waiting.discard(client)
                except TimeoutError:
                    continue
                except ConnectionError:
                    ends["closed"] += 1
                    waiting.discard(client)
            time.sleep(0.3)
    took = time.monotonic() - began
    for client in clients:
        client.close()
    return Finding(
        f"{count} connections that send a head a byte at a time",
        f"{dict(ends)} after {took:.0f} s; a neighbour meanwhile: median {statistics.median(times):.2f} ms",
        not waiting and ends["408"] == count,
    )


def idle(attack: Attack) -> Finding:
    before, count = attack.memory(), attack.many(10_000)
    clients = [attack.connect() for _ in range(count)]
    for client in clients[:: max(1, count // 1000)]:
        client.sendall(PING)
        client.recv(1000)
    each = (attack.memory() - before) * 1024 / count
    with attack.neighbour() as times:
        time.sleep(3)
    most, median = max(times), statistics.median(times)
    for client in clients:
        client.close()
    time.sleep(1)
    return Finding(
        f"{count} idle connections",
        f"{each:.1f} KiB each; a neighbour meanwhile: median {median:.2f} ms, most {most:.0f} ms; "
        f"{attack.memory() - before:+.1f} MiB after they left",
        each < 8 and attack.well(),
    )


def large_bodies(attack: Attack) -> Finding:
    before = attack.memory()
    announced = attack.statuses(post("Content-Length: 104857600\r\n", b"x" * MIB, length=False))
    chunk = b"100000\r\n" + b"x" * MIB + b"\r\n"
    chunked = attack.statuses(post("Transfer-Encoding: chunked\r\n", chunk * 100, length=False))
    stranger = attack.statuses(post("Content-Length: 30000000\r\n", b"x" * MIB, length=False, key="wrong"))
    after = attack.memory()
    return Finding(
        "100 MB body, announced; in chunks; 30 MB under a wrong key",
        f"{announced}, {chunked}, {stranger}; {after - before:+.1f} MiB",
        (announced, chunked, stranger) == ([413], [413], [401]) and after - before < 80,
    )


def tiny_chunks(attack: Attack) -> Finding:
    count, before, most = attack.many(4_000_000), attack.memory(), 0.0
    data, began = post("Transfer-Encoding: chunked\r\n", b"2\r\nab\r\n" * count, length=False), attack.cpu()
    with closing(attack.connect()) as client:
        with suppress(ConnectionError):
            for start in range(0, len(data), MIB):
                client.sendall(data[start : start + MIB])
                most = max(most, attack.memory())
        status = client.recv(1000)[9:12]
    per = (most - before) * MIB / (2 * count)
    return Finding(
        f"{2 * count / MIB:.1f} MiB of body in chunks of two bytes",
        f"{status.decode()}; {per:.1f} bytes of memory for each of the body, "
        f"{attack.cpu() - began:.1f} s of CPU",
        status == b"400" and per < 6,
    )


def head_bombs(attack: Attack) -> Finding:
    before = attack.memory()
    bombs = [b"A: b\r\n" * 10_000, b"A: " + b"b" * MIB + b"\r\n", b"A: b\r\n" * 150, b"A" * MIB]
    found = [attack.statuses(PING[:-2] + bomb + b"\r\n") for bomb in bombs]
    target = attack.statuses(b"GET /" + b"a" * MIB + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    return Finding(
        "10,000 header lines; one of 1 MiB; 150 lines; 1 MiB without a line end; a target of 1 MiB",
        f"{[*found, target]}; {attack.memory() - before:+.1f} MiB",
        [*found, target] == [[431]] * 5,
    )


def empty_lines(attack: Attack) -> Finding:
    began = attack.cpu()
    found = attack.statuses(b"\r\n" * attack.many(500_000))
    pipelined = attack.many(20_000)
    middle = attack.cpu()
    answered = attack.send(PING * (pipelined - 1) + PING.replace(b"x\r\n", b"x\r\nConnection: close\r\n"))
    return Finding(
        f"1 MB of empty lines; {pipelined} requests in one write",
        f"{found}, {(middle - began) * 1e3:.0f} ms of CPU; {answered.count(b'pong')} answers, "
        f"{(attack.cpu() - middle) / pipelined * 1e6:.0f} µs of CPU each",
        found == [400] and answered.count(b"pong") == pipelined and middle - began < 0.3,
    )


def garbage(attack: Attack) -> Finding:
    chance, found, before = attack.chance, Counter[int](), attack.memory()
    model = b'{"model":"%b"}' % MODEL.encode()
    good = [PING, post(body=model), post("Expect: 100-continue\r\n", model)]
    good.append(post("Transfer-Encoding: chunked\r\n", b"e\r\n%b\r\n0\r\n\r\n" % model, length=False))
    count = attack.many(5_000)
    for _ in range(count):
        data = bytearray(chance.choice(good) + chance.choice(good))
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randrange(20)]
                case 2:
                    data[at:at] = chance.choice(
                        (b"\r\n", b"\n", b"\r", b"\x00", b":", b" ", b"\r\n\r\n", b"0")
                    )
                case _:
                    data[at:at] = chance.randbytes(chance.randrange(20))
        with closing(attack.connect()) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            got = b""
            with suppress(ConnectionError):
                while part := client.recv(65536):
                    got += part
            found.update(int(status) for status in STATUS.findall(got))
    return Finding(
        f"{count} pairs of requests with random damage",
        f"{dict(sorted(found.items()))}; {attack.memory() - before:+.1f} MiB",
        attack.well() and not any(status >= 500 and status != 505 for status in found),
    )


def smuggling(attack: Attack) -> Finding:
    attack.engine.reset()
    ways = hidden_ways()
    answers = {name: attack.statuses(data + HIDDEN) for name, data in ways.items()}
    wrong = {name: found for name, found in answers.items() if found != [400]}
    spellings = ("Content-Length:2", "CONTENT-LENGTH:  2 ", "Content-Length: 002")
    same = {line: attack.statuses(post(f"{line}\r\n", length=False) + PING) for line in spellings}
    fine = all(found == [400, 200] for found in same.values())
    reached = attack.engine.seen()["requests"]
    return Finding(
        f"{len(ways)} ways to hide a request in another; odd spellings of a good length",
        f"{len(ways) - len(wrong)} of {len(ways)}: 400 and the end of the connection; "
        f"{reached} reached the engine; "
        f"odd spellings {'read right' if fine else same}{wrong or ''}",
        not wrong and fine and reached == 0,
    )


def slow_reader(attack: Attack) -> Finding:
    before, size = attack.memory(), attack.many(200)
    fake = {"chunks": size, "size": MIB}
    body = json.dumps({"model": MODEL, "stream": True, "fake": fake}).encode()
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        client.connect(("127.0.0.1", attack.worker.port))
        client.sendall(post(body=body))
        most = 0.0
        for _ in range(20):
            time.sleep(0.1)
            client.recv(4096)
            most = max(most, attack.memory())
        paused = attack.engine.seen()["in_flight"]
    return Finding(
        f"a reader of 40 KB/s under a stream of {size} MiB",
        f"{most - before:+.1f} MiB at most; the engine waits: {'yes' if paused else 'no'}",
        most - before < 8,
    )


def key_timing(attack: Attack) -> Finding:
    """A guess that shares all but its end with a real key, against one that shares nothing."""
    guesses = {"near": USER[:-1] + "x", "far": "zqk_wxyz"[: len(USER)].ljust(len(USER), "q")}
    times: dict[str, list[int]] = {name: [] for name in guesses}
    with closing(attack.connect()) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(attack.many(20_000)):
            for name in attack.chance.sample(list(guesses), 2):
                data = post(key=guesses[name])
                began = time.perf_counter_ns()
                client.sendall(data)
                got = client.recv(4096)
                times[name].append(time.perf_counter_ns() - began)
                assert got.startswith(b"HTTP/1.1 401")
    # The machine's noise is all on the slow side: the faster half tells most.
    halves = {name: sorted(each)[: len(each) // 2] for name, each in times.items()}
    near, far = (statistics.mean(half) / 1e3 for half in (halves["near"], halves["far"]))
    spread = sum(statistics.variance(half) / len(half) for half in halves.values()) ** 0.5 / 1e3
    score = abs(near - far) / max(spread, 1e-9)
    return Finding(
        f"{len(times['near'])} guesses that share all but a letter with a key, as many that share nothing",
        f"{near:.2f} and {far:.2f} µs (mean of the faster half), {score:.1f} standard errors apart",
        abs(near - far) < 2 or score < 4,  # on a busy machine chance alone makes more than 2 µs
    )


def odd_json(attack: Attack) -> Finding:
    deep = 100_000
    bodies = [
        b"[" * deep,
        b'{"model":"%b","messages":%b%b}' % (MODEL.encode(), b"[" * deep, b"]" * deep),
        b'{"model":' + b'{"a":' * deep + b"1" + b"}" * deep + b"}",
        b'{"model":"%b"}' % b",".join([MODEL.encode()] * 17),
        b'{"model":"%b"}' % (b"," * 100_000),
        b'{"model":"%b"}' % (b"x" * MIB),
        b'{"model":"\\ud800"}',
    ]
    began, statuses = attack.cpu(), [attack.statuses(post(body=body))[0] for body in bodies]
    used = (attack.cpu() - began) * 1e3
    return Finding(
        "nested 100,000 deep (three places); 17 models; 100,000 commas; a name of 1 MiB; half a surrogate",
        f"{statuses}; {used:.0f} ms of CPU together",
        all(400 <= status < 500 for status in statuses) and attack.well(),
    )


def unknown_keys(attack: Attack) -> Finding:
    before, count = attack.memory(), attack.many(20_000)
    attack.worker.records = []
    drained(attack.worker)
    began = attack.cpu()
    with closing(attack.connect()) as client:
        for number in range(count):
            client.sendall(post(key=f"cpk_{number}"))
            assert client.recv(4096).startswith(b"HTTP/1.1 401")
    each = (attack.cpu() - began) / count * 1e6
    records = len(drained(attack.worker))
    return Finding(
        f"{count} unknown keys",
        f"401, {each:.0f} µs of CPU each; {records} records; {attack.memory() - before:+.1f} MiB",
        records == 0 and attack.memory() - before < 4,
    )


def injection(attack: Attack) -> Finding:
    texts = [
        "a\\r\\nX-Bad: 1",
        "\\u000d\\u000aX-Bad: 1\\r\\n\\r\\n<html>",
        "\\u0000",
        "</script>",
        "é\\u2028",
    ]
    answers = [
        attack.send(post("Connection: close\r\n", b'{"model":"%b"}' % text.encode())) for text in texts
    ]
    for name in ("X-Request-Id", "User-Agent", "Traceparent"):
        answers += [
            attack.send(post(f"Connection: close\r\n{name}: {value}\r\n"))
            for value in ("a b", "é", "x" * 500)
        ]
    heads = [answer.partition(b"\r\n\r\n")[0].lower() for answer in answers]
    bad = [head for head in heads if b"x-bad" in head or b" b" in head.partition(b"x-request-id: ")[2][:200]]
    return Finding(
        "line ends, NUL and markup in model names; odd request ids",
        f"{Counter(int(answer[9:12]) for answer in answers)}; heads with foreign lines: {len(bad)}".replace(
            "Counter", ""
        ),
        not bad and all(head.count(b"\r\n") <= 5 for head in heads),
    )


def unknown_models(attack: Attack) -> Finding:
    count, began = attack.many(2_000), attack.cpu()
    names = ["".join(attack.chance.choices("abcdefgh/-", k=100)) for _ in range(count)]
    with closing(attack.connect()) as client:
        for name in names:
            client.sendall(post(body=json.dumps({"model": name}).encode()))
            assert client.recv(4096).startswith(b"HTTP/1.1 404")
    each = (attack.cpu() - began) / count * 1e3
    return Finding(f"{count} unknown models, with 51 chutes", f"404, {each:.2f} ms of CPU each", each < 20)


CASES: tuple[Callable[[Attack], Finding], ...] = (
    slow_heads, idle, large_bodies, tiny_chunks, head_bombs, empty_lines, garbage, smuggling, slow_reader,
    key_timing, odd_json, unknown_keys, unknown_models, injection,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    attack = Attack(options.scale)
    start, rows, good = attack.memory(), [], True
    try:
        for case in CASES:
            finding = case(attack)
            good = good and finding.good
            rows.append(f"| {finding.tried} | {finding.found} | {'yes' if finding.good else '**no**'} |")
            print(rows[-1], flush=True)
        end = attack.memory()
    finally:
        complaints = attack.close()
    text = (
        "# Abuse of the gateway\n\n"
        "What a stranger, or a key's owner, can do to one worker, and what it costs.\n"
        "Written by `python -m benchmarks.gateway_abuse`; a shorter run is among the integration tests.\n"
        "Attacker, worker and engine shared the machine's cores, so times are upper bounds.\n"
        "CPU is the worker's own.\n\n"
        "| tried | found | as it should be |\n|---|---|---|\n" + "\n".join(rows) + "\n\n"
        f"Resident memory of the worker: {start:.1f} MiB before, {end:.1f} MiB after all of it. "
        f"Lines on its error output: {len(complaints.splitlines())}.\n"
    )
    REPORT.write_text(text)
    if not good or complaints:
        print(complaints)
        sys.exit(1)


if __name__ == "__main__":
    main()
