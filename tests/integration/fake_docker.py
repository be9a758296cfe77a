#!/usr/bin/env python3
"""Stands in for docker: keeps images as JSON files and really runs what is asked, as processes.

What it is faithful in is what our code leans on: the client is a process of its own, the container is not its
child in any sense that a signal could use, and only standard input ties the two. State: $FAKE_DOCKER_ROOT.
`daemon` in there holds `down` when nobody answers.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.environ.get("FAKE_DOCKER_ROOT", "/nonexistent"))
IMAGES, CONTAINERS, CALLS = ROOT / "images", ROOT / "containers", ROOT / "calls.jsonl"


def file_of(reference):
    return IMAGES / (reference.replace("/", "%") + ".json")


def build(arguments):
    parser = argparse.ArgumentParser()
    for option in ("--tag", "--label", "--iidfile", "--file"):
        parser.add_argument(option)
    parser.add_argument("context")
    asked = parser.parse_args(arguments)
    if not re.fullmatch(r"([\w.-]+(:\d+)?/)?[a-z0-9][a-z0-9._/-]*(:\w[\w.-]{0,127})?", asked.tag):
        print(f'invalid argument "{asked.tag}" for "-t, --tag" flag: invalid reference format')
        return 125
    lines = Path(asked.file).read_text().splitlines()
    user = ""
    for number, line in enumerate(lines, 1):
        print(f"#{number} {line}", flush=True)
        if line.startswith("RUN false"):
            print('ERROR: failed to solve: process "/bin/sh -c false" did not complete: exit code: 1')
            return 1
        user = line.removeprefix("USER ") if line.startswith("USER ") else user
    context = sorted(str(p.relative_to(asked.context)) for p in Path(asked.context).rglob("*") if p.is_file())
    id = "sha256:" + hashlib.sha256(json.dumps([lines, context, asked.label]).encode()).hexdigest()
    label, _, value = asked.label.partition("=")
    image = {"Id": id, "User": user, "Labels": {label: value}, "context": context, "lines": lines}
    for name in (asked.tag, id):
        file_of(name).write_text(json.dumps(image))
    Path(asked.iidfile).write_text(id)
    return 0


def inspect(arguments):
    *_, form, reference = arguments
    try:
        image = json.loads(file_of(reference).read_text())
    except OSError:
        print("[]\nError: No such image: " + reference, file=sys.stderr)
        return 1
    label = form.split('"')[1]
    print(f"{image['Id']}|{image['Labels'].get(label, '')}|{image['User']}")
    return 0


def run(arguments):
    options = {}
    while arguments[0].startswith("--"):
        name, _, value = arguments.pop(0).partition("=")
        options[name] = value
    image, lifeline, grace, python, *rest = arguments
    assert file_of(image).exists(), f"no image {image}"
    assert (options["--entrypoint"], python, Path(lifeline).name) == ("python3", "python3", "lifeline.py")
    inside = Path(__file__).parents[2] / "chutes" / "engine" / "inside" / "lifeline.py"
    # A clean environment and a session of its own: nothing of the client's reaches it but its input.
    container = subprocess.Popen(
        [sys.executable, str(inside), grace, sys.executable, *rest],
        stdin=sys.stdin.buffer,
        cwd=options["--workdir"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
    )
    note = CONTAINERS / options["--name"]
    note.write_text(str(container.pid))
    # As docker's own client: SIGTERM goes on to the container, and a client that is killed leaves it be.
    signal.signal(signal.SIGTERM, lambda *_: container.send_signal(signal.SIGTERM))
    code = container.wait()
    note.unlink(missing_ok=True)
    return code if code >= 0 else 128 - code


def rm(arguments):
    note = CONTAINERS / arguments[-1]
    if not note.exists():
        print(f"Error response from daemon: No such container: {arguments[-1]}", file=sys.stderr)
        return 1
    with contextlib.suppress(ProcessLookupError):
        os.killpg(int(note.read_text()), signal.SIGKILL)
    note.unlink(missing_ok=True)
    return 0


def main():
    verb, *arguments = sys.argv[1:]
    if (ROOT / "daemon").exists():
        print("Cannot connect to the Docker daemon at unix:///x.sock. Is the docker daemon running?")
        return 1
    with CALLS.open("a") as calls:
        calls.write(json.dumps({"command": sys.argv[1:], "environ": sorted(os.environ)}) + "\n")
    if verb == "version":
        print("99.0")
        return 0
    if verb == "pull":
        print(f"Error response from daemon: pull access denied for {arguments[-1]}")
        return 1
    return {"build": build, "inspect": inspect, "run": run, "rm": rm}[verb](arguments)


def install(root: Path) -> Path:
    """Make a `docker` of this file below `root`; returns the directory for PATH."""
    (place := root / "bin").mkdir(parents=True)
    for directory in ("images", "containers"):
        (root / directory).mkdir()
    docker = place / "docker"
    docker.write_text(
        f'#!/bin/sh\nFAKE_DOCKER_ROOT={root} exec {sys.executable} {Path(__file__).absolute()} "$@"\n'
    )
    docker.chmod(0o755)
    return place


if __name__ == "__main__":
    for directory in (IMAGES, CONTAINERS):
        directory.mkdir(parents=True, exist_ok=True)
    sys.exit(main())
