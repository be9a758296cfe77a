"""One run of one job, in a process of its own: `python -m chutes.chute.job_run`.

The chute's startup hooks run first, as in an instance. `args.json` in the directory holds the arguments,
`output/` gets the files, `result.json` says in the end what came of it: `Job.run`'s own words.

SIGTERM asks the job to stop: `cancel_event` is set, async code is cancelled where it awaits. What does not
stop is killed by whoever asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from fastapi.encoders import jsonable_encoder

from chutes.chute.base import Chute
from chutes.chute.instance import give_up, started
from chutes.chute.job import Job
from chutes.chute.spec import RESULT_BYTES

LATE_SECONDS = 5.0  # after which code that blocks, and so cannot be cancelled, has had its chance
HOOK_SECONDS = 60.0  # for shutdown hooks: the result is there already


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ref", required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--startup-seconds", type=float, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(_run(options.ref, options.job, options.directory, options.startup_seconds))


async def _run(ref: str, name: str, directory: Path, limit: float) -> None:
    async with started(ref, limit) as chute:
        job = _find(chute, name)
        arguments = json.loads((directory / "args.json").read_text())
        _stop_on_signal(job)
        late = _leave_after(
            job.timeout and job.timeout + LATE_SECONDS, lambda: _write(directory, _late(job.timeout))
        )
        outcome = await job.run(output_dir=directory / "output", **arguments)
        late.cancel()
        _write(directory, outcome)
        leave = _leave_after(HOOK_SECONDS, lambda: None)
    leave.cancel()


def _find(chute: Chute, name: str) -> Job:
    for job in chute.jobs:
        if job.name == name:
            return job
    give_up(f"chute {chute.name!r} has no job {name!r}", final=True)


def _stop_on_signal(job: Job) -> None:
    loop = asyncio.get_running_loop()

    def stop(*_: object) -> None:
        # At once, for a function that blocks the loop and looks at it; then the loop is woken to see it too.
        job.cancel_event.set()
        loop.call_soon_threadsafe(lambda: None)

    signal.signal(signal.SIGTERM, stop)


def _leave_after(seconds: float | None, last: Any) -> threading.Timer:
    """End the process from a thread, whatever the main one is at. Started unless there is no limit."""

    def leave() -> None:
        traceback.print_stack(sys._current_frames().get(threading.main_thread().ident or 0))
        last()
        os._exit(1)

    timer = threading.Timer(seconds or 0, leave)
    timer.daemon = True
    if seconds:
        timer.start()
    return timer


def _late(timeout: int | None) -> dict[str, Any]:
    return {"status": "timeout", "detail": f"the job took more than {timeout} seconds, and did not stop"}


def _write(directory: Path, outcome: dict[str, Any]) -> None:
    """The result, whole or not at all."""
    said = {key: value for key, value in outcome.items() if key != "output_dir"}
    try:
        text = json.dumps(jsonable_encoder(said))
    except (TypeError, ValueError, RecursionError):
        text = json.dumps({**said, "result": repr(said.get("result"))})
    if len(text) > RESULT_BYTES:
        what = f"The result is {len(text)} bytes of JSON, {RESULT_BYTES} are kept: write it to output_dir."
        # A character is up to 12 bytes of JSON.
        detail = str(said.get("detail") or what)[: RESULT_BYTES // 16]
        text = json.dumps({"status": "error", "detail": detail})
    draft = directory / "result.json.partial"
    draft.write_text(text)
    draft.replace(directory / "result.json")


if __name__ == "__main__":
    main()
