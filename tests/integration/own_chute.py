"""A chute of an author's own, for `test_own_chutes`: every kind of cord, hooks, and a job.

It is copied into a directory of its own, beside the package `lib_of_mine`, and deployed from there.
"""

import asyncio
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from lib_of_mine.words import greeting  # pyright: ignore[reportMissingImports]
from pydantic import BaseModel, Field

from chutes.chute import Chute

chute = Chute("tester", "Mine", "unused/image", concurrency=8, tagline="Everything an author may do")

# What a passthrough cord relays to: a server that the startup hook starts.
SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = 418 if b"teapot" in body else 200
        answer = json.dumps({"relayed": json.loads(body), "path": self.path}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class Asked(BaseModel):
    name: str
    times: int = Field(default=1, ge=1, le=5)


class Greeted(BaseModel):
    said: list[str]


class Short(BaseModel):
    name: str = "you"


@chute.on_startup(priority=10)
def first(self):
    self.order = ["first"]
    time.sleep(0.2)  # blocks, as loading a model does


@chute.on_startup(priority=20)
async def second(self):
    self.order.append("second")
    port = int(os.environ["RELAY_PORT"])  # a secret, as it happens
    self.server = subprocess.Popen([sys.executable, "-c", SERVER, str(port)])  # noqa: ASYNC220
    self.passthrough_port = port

    async def tick():
        while True:
            self.ticks = getattr(self, "ticks", 0) + 1
            await asyncio.sleep(0.05)

    self.ticking = asyncio.create_task(tick())  # goes on after the hook
    while self.server.poll() is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            break


@chute.on_shutdown()
def last(self):
    print("the shutdown hook ran", flush=True)
    self.server.terminate()


@chute.cord(public_api_path="/greet", minimal_input_schema=Short)
def greet(self, args: Asked) -> Greeted:
    """Says hello."""
    return Greeted(said=[greeting(args.name)] * args.times)


@chute.cord(public_api_path="/state", public_api_method="GET")
async def state(self, part: str = "order") -> dict:
    return {part: getattr(self, part)}


@chute.cord(public_api_path="/count", stream=True)
async def count(self, n: int) -> AsyncIterator[dict]:
    for i in range(n):
        yield {"i": i}
        await asyncio.sleep(0.01)


@chute.cord(public_api_path="/lines", stream=True, output_content_type="application/x-ndjson")
def lines(self, n: int) -> Iterator[dict]:
    for i in range(n):
        yield {"i": i}
    raise RuntimeError("the well ran dry of private matters")


@chute.cord(public_api_path="/dies", stream=True)
def dies(self) -> Iterator[dict]:
    yield {"i": 0}
    raise RuntimeError("the well ran dry of private matters")


@chute.cord(public_api_path="/sound", stream=True, output_content_type="audio/wav")
def sound(self) -> Iterator[bytes]:
    yield b"RIFF"
    raise RuntimeError("no more sound")


@chute.cord(public_api_path="/square", output_content_type="image/png")
def square(self, size: int = 2) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" + b"\xff" * size) * size)
    head = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@chute.cord(public_api_path="/relay", passthrough=True, passthrough_path="/inner/answer")
def relay(self, args: dict):
    return args  # what a caller in Python gets of the answer


@chute.cord(public_api_path="/boom")
def boom(self):
    raise ValueError("private matters of the author")


@chute.cord(public_api_path="/nap")
def nap(self, seconds: float) -> dict:
    time.sleep(seconds)
    return {"slept": seconds}


@chute.cord(public_api_path="/secret")
def secret(self) -> dict:
    return {name: os.environ.get(name) for name in ("MY_TOKEN", "CHUTES_INSTANCE_KEY", "FOR_ALL")}


@chute.cord(public_api_path="/v1/chat/completions")
def chat(self, args: dict) -> dict:
    assert "stream_options" not in args
    text = args["messages"][-1]["content"].upper()
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}], "object": "x"}


@chute.job(timeout=60, ports=[{"name": "web", "port": 8888, "proto": "http"}])
async def make(self, output_dir: str, word: str = "x", n: int = 3):
    out = Path(output_dir)
    (out / "deep").mkdir()
    for i in range(n):
        (out / "deep" / f"{i}.txt").write_text(word * i)
    (out / "link").symlink_to("/etc/passwd")
    print("made", n, "of", self.order, flush=True)
    return {"n": n, "port": int(os.environ["CHUTES_PORT_HTTP_8888"]), "token": os.environ.get("MY_TOKEN")}


@chute.job(timeout=30)
def slow(self, output_dir: str):
    time.sleep(600)  # blocks: only its end of process ends it


slow.job.timeout = 1  # the least that an author can ask for is 30  # pyright: ignore[reportFunctionMemberAccess]


@chute.job()
async def fails(self, output_dir: str):
    raise LookupError("no such thing")


@chute.job(timeout=86400)
def stubborn(self, output_dir: str):
    Path(output_dir, "began").write_text("")
    while not stubborn.job.cancel_event.is_set():  # pyright: ignore[reportFunctionMemberAccess]
        time.sleep(0.05)
    Path(output_dir, "noticed").write_text(json.dumps(True))


@chute.job(upload=False)  # its files are removed
async def naughty(self, output_dir: str, target: str):
    out = Path(output_dir)
    out.rmdir()
    out.symlink_to(target)


@chute.job()
async def misnamed(self, output_dir: str):
    Path(os.fsdecode(os.fsencode(output_dir) + b"/\xff.txt")).write_text("no UTF-8")


@chute.job()
async def verbose(self, output_dir: str, around: bool):
    text = "x" * (2 << 20)
    if around:  # the platform's own code, which would say so
        said = {"status": "complete", "result": text}
        Path(output_dir).with_name("result.json").write_text(json.dumps(said))
        os._exit(3)
    return text
