"""An engine's process tree, with real processes: started, watched, ended whoever dies first."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from chutes.engine.process import PORTS, EngineProcess, found_in, free_port, place_of, runs, sweep, tail
from chutes.exception import EngineFailed

# A tree like vLLM's: a child in the group, and a grandchild that left it for a session of its own; neither
# has an environment to be known by (vLLM's engine core overwrites its own).
TREE = textwrap.dedent("""
    import os, signal, sys, time
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.environ.clear()
        os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    print("up", flush=True)
    time.sleep(600)
""")


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree's grandchild ignores SIGTERM: every end of it waits the whole grace."""
    monkeypatch.setattr("chutes.engine.process.STOP_GRACE_SECONDS", 1.0)


@pytest.fixture
def place(tmp_path: Path):
    place = place_of(tmp_path, "i1")
    yield place
    sweep(place)


async def start(code: str, tmp_path: Path, place: Path) -> EngineProcess:
    return await EngineProcess.start(
        [sys.executable, "-c", code], dict(os.environ), tmp_path / "e.log", place
    )


async def until(condition, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def grown(process: EngineProcess) -> None:
    """Until minder, engine, child and grandchild are there."""
    await until(lambda: len(found_in(process.place)) == 4)


async def test_the_exit_status_and_the_last_words_come_through(tmp_path: Path, place: Path) -> None:
    process = await start("import sys; print('last words'); sys.exit(7)", tmp_path, place)
    assert await process.wait() == 7
    assert tail(process.log, 1000) == "last words\n"


async def test_a_stop_leaves_nothing_even_of_those_who_left_the_group(tmp_path: Path, place: Path) -> None:
    process = await start(TREE, tmp_path, place)
    await grown(process)
    await asyncio.wait_for(process.stop(), 5)
    assert found_in(place) == []


def test_a_sweep_of_what_ends_by_itself_meanwhile(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look that finds a process and the one that asks for its state, it may have gone."""
    process = subprocess.Popen(["sleep", "600"])
    seen = psutil.Process(process.pid)
    assert runs(seen)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not runs(seen), "a zombie"
    process.wait()
    assert not runs(seen), "gone"
    monkeypatch.setattr("chutes.engine.process.found_in", lambda place: [seen])
    assert sweep(place) == []


async def test_the_engines_first_process_killed(tmp_path: Path, place: Path) -> None:
    process = await start(TREE, tmp_path, place)
    await grown(process)
    os.kill(process.pid, signal.SIGKILL)
    assert await asyncio.wait_for(process.wait(), 15) == 128 + signal.SIGKILL
    assert found_in(place) == []


async def test_the_minder_killed(tmp_path: Path, place: Path) -> None:
    process = await start(TREE, tmp_path, place)
    await grown(process)
    os.kill(process.minder.pid, signal.SIGKILL)
    assert await asyncio.wait_for(process.wait(), 15) == 128 + signal.SIGKILL
    assert found_in(place) == []


def test_the_platform_killed(tmp_path: Path, place: Path) -> None:
    """A parent that starts an engine and is then killed: the minder ends the tree by itself."""
    code = textwrap.dedent(f"""
        import asyncio, os, sys
        from pathlib import Path
        from chutes.engine import process
        process.STOP_GRACE_SECONDS = 1.0
        async def main():
            command, log = [sys.executable, "-c", {TREE!r}], Path({str(tmp_path / "e.log")!r})
            await process.EngineProcess.start(command, dict(os.environ), log, Path({str(place)!r}))
            print("started", flush=True)
            await asyncio.sleep(600)
        asyncio.run(main())
    """)

    async def check() -> None:
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
        )
        assert parent.stdout is not None
        assert await asyncio.wait_for(parent.stdout.readline(), 20) == b"started\n"
        await until(lambda: len(found_in(place)) == 4)
        parent.kill()
        await parent.wait()
        await until(lambda: found_in(place) == [], 20)

    asyncio.run(check())


async def test_a_command_that_does_not_exist(tmp_path: Path, place: Path) -> None:
    with pytest.raises(EngineFailed, match="No such file"):
        await EngineProcess.start(["/no/such/python"], dict(os.environ), tmp_path / "e.log", place)


async def test_the_log_is_rotated(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chutes.engine.process.LOG_BYTES", 10_000)
    process = await start("for n in range(5000): print(f'line {n:06}', flush=n % 100 == 0)", tmp_path, place)
    await process.wait()
    files = sorted(path.name for path in tmp_path.glob("e.log*"))
    assert files == ["e.log", "e.log.1", "e.log.2", "e.log.3"]
    assert all((tmp_path / name).stat().st_size <= 80_000 for name in files)
    assert tail(tmp_path / "e.log", 100).endswith("line 004999\n")


async def test_a_flood_of_output_is_no_hindrance_to_stopping(tmp_path: Path, place: Path) -> None:
    process = await start("while True: print('x' * 10000)", tmp_path, place)
    await asyncio.sleep(0.5)
    await asyncio.wait_for(process.stop(), 20)
    assert found_in(place) == []


async def test_the_minder_is_small(tmp_path: Path, place: Path) -> None:
    process = await start("import time; time.sleep(600)", tmp_path, place)
    used = psutil.Process(process.minder.pid).memory_info().rss
    await process.stop()
    assert used < 16 << 20, f"{used >> 10} KiB"


def test_a_free_port_is_below_the_ephemeral_range_and_not_taken() -> None:
    port = free_port()
    assert port in PORTS
    with socket.socket() as held:
        held.bind(("127.0.0.1", port))
        assert all(free_port() != port for _ in range(50))
    with pytest.raises(EngineFailed, match="No free port"):
        free_port(PORTS)
