"""Run one helper command to its end: its lines as they come, its whole process group gone on cancellation."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import re
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from chutes.mortal import mortal

KEPT_LINES = 400  # enough for any traceback; the rest of a chatty command's output is not worth memory

GRACE_SECONDS = 5.0  # pip unwinds its temporary files in well under a second when asked to end


def inherited() -> dict[str, str]:
    """What an engine, and all that is run in its environment, gets of our own environment variables.

    CHUTES_* and the hub's tokens may be secrets, which they have no use for; PYTHON* and a virtual
    environment of ours would leak our packages into theirs.
    """
    secret = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "VIRTUAL_ENV")
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CHUTES_", "PYTHON")) and name not in secret
    }


class CommandFailed(Exception):
    """The command exited with another code than 0, or ran out of time; `lines` are its last output."""

    def __init__(self, reason: str, lines: list[str]) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lines = lines


async def run(
    args: Sequence[str | Path],
    *,
    variables: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = lambda line: None,
    timeout: float | None = None,
) -> list[str]:
    """Run `args`, stdout and stderr read as one stream of lines.

    Args:
        variables: added to what is inherited of our own.
        on_line: called with each line, without its end; `\\r` ends a line too (progress bars).
        timeout: seconds; None waits for ever.

    Returns:
        The last KEPT_LINES lines.

    Raises:
        CommandFailed: exit code other than 0, the time is up, or the program cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        *mortal(args),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**inherited(), **(variables or {})},
        start_new_session=True,  # so that its children can be ended with it
    )
    kept: deque[str] = deque(maxlen=KEPT_LINES)
    try:
        async with asyncio.timeout(timeout):
            await _read(process, kept, on_line)
            code = await process.wait()
    except TimeoutError:
        raise CommandFailed(f"it did not end within {timeout:.0f} seconds", list(kept)) from None
    finally:
        await asyncio.shield(_end_group(process))
    if code:
        raise CommandFailed(f"exit code {code}" if code > 0 else f"signal {-code}", list(kept))
    return list(kept)


async def _read(
    process: asyncio.subprocess.Process, kept: deque[str], on_line: Callable[[str], None]
) -> None:
    assert process.stdout is not None
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    # Not readline(): it fails on lines past 64 KiB, and a progress bar is one line of any length.
    while data := await process.stdout.read(1 << 16):
        *lines, rest = re.split(r"[\r\n]", rest + decoder.decode(data))
        for line in filter(str.strip, lines):
            kept.append(line)
            on_line(line)
    if rest.strip():
        kept.append(rest)
        on_line(rest)


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """End whatever is left of the process group: asked first, killed after GRACE_SECONDS."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), GRACE_SECONDS)
    # The leader's exit leaves its children running; the group keeps its number as long as one of them lives.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        await process.wait()
