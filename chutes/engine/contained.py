"""A Python interpreter that is in a container: called as one is called, it runs `docker run` (or podman's).

So an instance, and a job, is started in a container with the very command line that starts it without. Stands
under the minder, and is three things to the container:

- its input. Environment variables go in through it, and it is held open: whatever ends this process closes
  it, and the container ends itself (`inside/lifeline.py`).
- its name, noted beside the instance's directory, where the container cannot write: what even that does not
  reach, because the container hangs, is removed by it. `process.sweep` looks there, after any death of ours.
- its exit status.

Run as a script with `python -I -S`, standard library only, for the same reason as the minder.

    contained.py SETTINGS.json ARGUMENTS OF PYTHON ...
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

ENGINES = ("docker", "podman")
NOTE = "container.json"
NAME = re.compile(r"chutes-[\w-]+-[0-9a-f]{8}")
# Removing takes a tenth of a second; a daemon that does not answer must not hold up an end for long.
REMOVE_SECONDS = 60.0
REMOVE_TRIES = 3  # an engine that is itself just cleaning up after the container refuses for a moment

GPUS = "CUDA_VISIBLE_DEVICES"
MOUNTS = "CHUTES_MOUNTS"
"""Environment variable: directories beside the working one that are needed inside, as PATH lists them."""
MEANT = "CHUTES_MEANT"
"""Environment variable: names of those that are for the container, whatever the machine's own are."""

# Inside, devices are counted anew from 0.
NOT_PASSED = (GPUS, "CUDA_DEVICE_ORDER", MOUNTS, MEANT)


def fingerprint(value):
    """Of an environment variable's value, to be told again without being kept."""
    return hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()[:16]


def meant(variables):
    """An instance's own variables, told from the machine's by name: a secret may have the same value."""
    return {**variables, MEANT: " ".join(variables)}


def passed(environ, host):
    """The variables that are for the container: those that are meant for it, and those that the machine has
    not, or with another value."""
    own = environ.get(MEANT, "").split()
    return {
        name: value
        for name, value in environ.items()
        if name not in NOT_PASSED and (name in own or host.get(name) != fingerprint(value))
    }


def mounts(environ):
    """The directories that MOUNTS names."""
    return [Path(path) for path in environ.get(MOUNTS, "").split(os.pathsep) if path]


def let_in(place):
    """Let the image's own user write in a directory and in those in it, and nobody else of this machine."""
    with contextlib.suppress(OSError):
        place.parent.chmod(0o700)
        for path in (place, *place.iterdir()):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o777)


def command(settings, environ, place, name, arguments):
    """The command line of the container engine. It holds no variable's value: `ps` shows it to everybody."""
    gpus = [number for number in environ.get(GPUS, "").split(",") if number]
    if settings["engine"] == "podman":
        devices = [f"--device=nvidia.com/gpu={number}" for number in gpus]
    else:
        # Docker reads the value as a line of CSV: the quotes keep the numbers in one field.
        devices = [f'--gpus="device={",".join(gpus)}"'] if gpus else []
    return [
        *settings["run"],
        f"--name={name}",
        *devices,
        # At the same path inside: so paths in arguments and variables hold on both sides.
        *(f"--volume={path}:{path}" for path in (place, *mounts(environ))),
        f"--workdir={place}",
        *settings["image"],
        *arguments,
    ]


def note_of(place):
    """Where an instance's container is noted: beside its directory, which is the container's to write."""
    return place.parent / f"{place.name}.{NOTE}"


def remove_noted(note):
    """Remove the container that a note tells of, if there is one. Nothing else can be asked for by a note."""
    with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
        engine, name = json.loads(note.read_text())
        if engine not in ENGINES or not NAME.fullmatch(name):
            raise ValueError(note)
        for _ in range(REMOVE_TRIES):
            done = subprocess.run(
                [engine, "rm", "--force", name],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=REMOVE_SECONDS,
                check=False,
            )
            if done.returncode == 0 or b"no such container" in done.stderr.lower():
                break
            time.sleep(1)
        note.unlink()


def main():
    settings = json.loads(Path(sys.argv[1]).read_text())
    place = Path.cwd()
    for path in (place, *mounts(os.environ)):
        let_in(path)
    name = f"chutes-{place.name}-{secrets.token_hex(4)}"
    # Before the container is there: who is killed between the two leaves a name that nobody bears.
    note = note_of(place)
    draft = note.with_suffix(".new")
    draft.write_text(json.dumps([settings["engine"], name]))
    draft.replace(note)
    container = subprocess.Popen(
        command(settings, os.environ, place, name, sys.argv[2:]), stdin=subprocess.PIPE
    )
    lifeline = container.stdin
    assert lifeline is not None
    signal.signal(signal.SIGTERM, lambda *_: lifeline.close())
    mounted = os.pathsep.join(map(str, (place, *mounts(os.environ))))
    variables = {**settings["variables"], **passed(os.environ, settings["host"]), MOUNTS: mounted}
    with contextlib.suppress(OSError, ValueError):  # it ended, or we were told to, before it heard this
        lifeline.write(json.dumps(variables).encode() + b"\n")
        lifeline.flush()
    code = container.wait()
    remove_noted(note)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
