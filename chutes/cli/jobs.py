"""jobs run, list, show, cancel, logs, files, download."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from chutes import config as settings
from chutes.cli import client, output
from chutes.control.jobs import Status
from chutes.exception import AlreadyExists, ChutesError, NotFound, UsageError

POLL_SECONDS = 0.5


def run(chute: str, job: str, arguments: list[str], data: str | None, wait: bool, as_json: bool) -> None:
    """
    Args:
        arguments: `name=value`, the value JSON or else text.
        data: a JSON object, or `@file` with one.
    """
    platform = client.connect(settings.load())
    made = platform.call("POST", f"{client.named('chutes', chute)}/jobs/{job}", _arguments(arguments, data))
    if wait:
        output.note(f"Run {made['job_id']}; `chutes jobs cancel` stops it.")
        while not Status(made["status"]).over:
            time.sleep(POLL_SECONDS)
            made = platform.call("GET", f"/jobs/{made['job_id']}")
    if as_json:
        output.document(made)
    elif wait:
        _say(made)
    else:
        output.say(made["job_id"])
        output.note(f"Started; `chutes jobs show {made['job_id']}` tells how it goes.")
    if wait and made["status"] != Status.COMPLETE:
        raise SystemExit(1)


def _arguments(pairs: list[str], data: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if data is not None:
        try:
            found = json.loads(Path(data[1:]).read_text() if data.startswith("@") else data)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--data is no JSON: {error}", "Write --data '{\"steps\": 3}' or --data @file."
            ) from None
        if not isinstance(found, dict):
            raise UsageError("--data must be a JSON object: its keys are the job's parameters.")
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"{pair!r} is not name=value.", "For instance steps=3 or prompt='a cat'.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def list_all(chute: str | None, as_json: bool) -> None:
    query = {"chute": chute} if chute else {}
    runs = client.connect(settings.load()).call("GET", "/jobs/", **query)
    if as_json:
        output.document(runs)
    elif not runs:
        output.note("No job has been run: chutes jobs run CHUTE JOB")
    else:
        now = time.time()
        output.table(
            ["ID", "CHUTE", "JOB", "STATUS", "AGE", "TOOK", "FILES"],
            [
                [
                    one["job_id"], one["chute"], one["method"], _status(one),
                    output.age(now - one["created_at"]), _took(one, now), str(len(one["files"])),
                ]
                for one in runs
            ],
        )  # fmt: skip


def show(job_id: str, as_json: bool) -> None:
    one = client.connect(settings.load()).call("GET", client.named("jobs", job_id))
    if as_json:
        output.document(one)
    else:
        _say(one)


def cancel(job_id: str, as_json: bool) -> None:
    one = client.connect(settings.load()).call("DELETE", client.named("jobs", job_id))
    if as_json:
        output.document(one)
    else:
        output.note(f"Run {job_id} is {_status(one)}.")


def logs(job_id: str, follow: bool, lines: int) -> None:
    platform = client.connect(settings.load())
    with contextlib.suppress(KeyboardInterrupt):
        path = client.named("jobs", job_id, "logs")
        for text in platform.lines(path, follow=str(follow).lower(), backfill=lines):
            sys.stdout.write(text)
            sys.stdout.flush()


def files(job_id: str, as_json: bool) -> None:
    one = client.connect(settings.load()).call("GET", client.named("jobs", job_id))
    if as_json:
        output.document(one["files"])
        return
    for file in one["files"]:
        output.say(f"{file['size']:>12,}  {file['path']}")
    for path in one["left_out"]:
        output.note(f"not kept, as the files were too many or too large: {path}")


def download(job_id: str, path: str | None, to: Path, force: bool) -> None:
    """One file of a run, or all of them, below the directory `to`.

    Args:
        force: write over what is there.
    """
    platform = client.connect(settings.load())
    one = platform.call("GET", client.named("jobs", job_id))
    names = [file["path"] for file in one["files"]]
    if path is not None and path not in names:
        raise NotFound(f"Run {job_id} left no file {path!r}.", f"It left {', '.join(names) or 'none'}.")
    targets = {name: (to / name).resolve() for name in (names if path is None else [path])}
    for name, target in targets.items():
        if not target.is_relative_to(to.resolve()):
            raise ChutesError(f"{name!r} would be written outside of {to}.")
        if target.exists() and not force:
            raise AlreadyExists(
                f"{target} is there already; nothing was downloaded.",
                "Choose another directory with --to, or --force to write over it.",
            )
    for name, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        platform.download(client.named("jobs", job_id, "download", *name.split("/")), target)
        output.say(str(target))


def _status(one: dict[str, Any]) -> str:
    return "cancelling" if one["cancelling"] and not Status(one["status"]).over else one["status"]


def _took(one: dict[str, Any], now: float) -> str:
    return output.age((one["ended_at"] or now) - one["started_at"]) if one["started_at"] else "-"


def _say(one: dict[str, Any]) -> None:
    output.note(f"{one['method']} of {one['chute']}: {_status(one)}")
    for port in one["ports"]:
        output.note(f"  port {port['name']} ({port['port']}/{port['proto']}): 127.0.0.1:{port['number']}")
    if one["detail"]:
        output.note(one["detail"])
    for file in one["files"]:
        output.note(f"  {file['path']} ({file['size']:,} bytes)")
    if one["result"] is not None:
        output.document(one["result"])
