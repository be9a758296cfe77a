"""SIGKILL of each kind of process: what a client saw, what came back, how long it took, what was left over.

The same is done with real vLLM in tests/e2e; here the engine is synthetic, starts at once and has children.
"""

from __future__ import annotations

import http.client
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.platform_kit import NAME, PlatformKit, gone, platform, until
from tests.story import Story

CHILDREN = 3


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[PlatformKit]:
    with platform(tmp_path) as kit:
        kit.run("deploy", kit.chute(f"--fake-children {CHILDREN}"))
        yield kit


class Stream:
    """A client in the middle of a long streamed answer."""

    def __init__(self, kit: PlatformKit, key: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", kit.port, timeout=30)
        body = {
            "model": NAME,
            "stream": True,
            "messages": [{"role": "user", "content": "go on"}],
            "fake": {"chunks": 10_000, "gap": 0.01},
        }
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self.connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        self.response = self.connection.getresponse()
        assert self.response.status == 200
        assert self.response.read(200).startswith(b"data: ")

    def end(self) -> str:
        """How the stream ended, in words."""
        try:
            text = self.response.read().decode()
        except (http.client.IncompleteRead, ConnectionError) as error:
            return f"the connection broke ({type(error).__name__})"
        finally:
            self.connection.close()
        assert "[DONE]" not in text, "a broken answer must not look like a whole one"
        last = text.rstrip().rsplit("data: ", 1)[-1]
        return f"an SSE error event: {json.loads(last)['error']['message']}"


def recovery(kit: PlatformKit, key: str, since: float) -> float:
    """Seconds from `since` until a request is answered again."""

    def answered() -> bool:
        try:
            return kit.chat(key)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    until(answered, 30)
    return time.monotonic() - since


def engine_processes(kit: PlatformKit) -> tuple[psutil.Process, psutil.Process, list[psutil.Process]]:
    """(minder, engine, its children)"""
    minder = next(p for p in kit.engine_tree() if "minder.py" in " ".join(p.cmdline()))
    (engine,) = minder.children()
    until(lambda: len(engine.children()) == CHILDREN)
    return minder, engine, engine.children()


def test_the_engines_parent(kit: PlatformKit, story: Story) -> None:
    key = kit.key()
    minder, engine, children = engine_processes(kit)
    stream, since = Stream(kit, key), time.monotonic()
    minder.send_signal(signal.SIGKILL)
    saw = stream.end()
    assert "error event" in saw
    took = recovery(kit, key, since)
    assert gone(engine, *children)
    assert len(kit.engine_tree()) == 2 + CHILDREN
    story.tell(
        "synthetic", "the engine's parent (minder)", saw, f"engine restarted, answers after {took:.1f} s"
    )


def test_the_engines_first_process(kit: PlatformKit, story: Story) -> None:
    key = kit.key()
    _, engine, children = engine_processes(kit)
    stream, since = Stream(kit, key), time.monotonic()
    engine.send_signal(signal.SIGKILL)
    saw = stream.end()
    assert "error event" in saw
    until(lambda: gone(engine))
    assert kit.chat(key)[0] == 200, "what is asked in between waits for the restart"
    took = time.monotonic() - since
    assert gone(*children)
    assert len(kit.engine_tree()) == 2 + CHILDREN
    story.tell(
        "synthetic", "the engine's first process", saw, f"engine restarted, answers after {took:.1f} s"
    )


def test_a_gateway_worker(kit: PlatformKit, story: Story) -> None:
    key = kit.key()
    (worker,) = kit.workers()
    stream, since = Stream(kit, key), time.monotonic()
    worker.send_signal(signal.SIGKILL)
    # Straight after: this connection waits in the listening socket's queue, it is not refused.
    assert kit.chat(key)[0] == 200
    took = time.monotonic() - since
    saw = stream.end()
    assert "broke" in saw
    (replacement,) = kit.workers()
    assert replacement.pid != worker.pid
    story.tell("synthetic", "a gateway worker", saw, f"next request waited {took:.1f} s and was answered")


def test_the_control_process(kit: PlatformKit, story: Story) -> None:
    key = kit.key()
    minder, engine, children = engine_processes(kit)
    workers = kit.workers()
    stream, since = Stream(kit, key), time.monotonic()
    control = kit.control()
    control.send_signal(signal.SIGKILL)
    saw = stream.end()
    until(lambda: gone(minder, engine, *children, *workers), 60)
    ended = time.monotonic() - since
    assert kit.engine_tree() == []
    kit.run("deploy", f"{NAME.replace('-', '_')}:chute")
    assert kit.chat(key)[0] == 200, "keys and deployments are still there"
    story.tell("synthetic", "the control process", saw, f"all it started ended within {ended:.1f} s")


def test_control_and_minder_at_once(kit: PlatformKit, story: Story) -> None:
    """Nobody is left to clean up but the next platform: it sweeps by the mark in the environment."""
    minder, engine, children = engine_processes(kit)
    minder.suspend()  # so that it cannot react to its input closing
    kit.control().send_signal(signal.SIGKILL)
    minder.send_signal(signal.SIGKILL)
    until(lambda: gone(engine), 10)
    kit.run("ps", code=1)
    kit.run("deploy", f"{NAME.replace('-', '_')}:chute")
    assert gone(*children)
    assert len(kit.engine_tree()) == 2 + CHILDREN
    story.tell(
        "synthetic", "control and minder at once", "-", "the next platform swept the engine's children"
    )
