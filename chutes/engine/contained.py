"""The process outside of a container: stands under the minder in its place.

It runs `docker run` (or podman's), gives the container its environment variables through standard input, and
holds that input open. Whatever ends this process closes it, and the container ends itself
(`inside/lifeline.py`). What even that does not reach, because the container hangs, is removed by its name,
which stands in a file of the instance's directory: `process.sweep` finds it after any death of ours.

Run as a script with `python -I -S`, standard library only, for the same reason as the minder.

    contained.py --pass NAME,NAME --name NAME -- PROGRAM run ... --name NAME ...
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

NOTE = "container.json"
# Removing takes a tenth of a second; a daemon that does not answer must not hold up an end for long.
REMOVE_SECONDS = 60.0
REMOVE_TRIES = 3  # an engine that is itself just cleaning up after the container refuses for a moment


def remove_noted(place):
    """Remove the container that an instance's directory tells of, if it tells of one."""
    note = Path(place, NOTE)
    with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
        command = json.loads(note.read_text())
        for _ in range(REMOVE_TRIES):
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=REMOVE_SECONDS, check=False
            )
            if done.returncode == 0 or b"no such container" in done.stderr.lower():
                break
            time.sleep(1)
        note.unlink()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pass", dest="names", default="")
    parser.add_argument("--name", required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command

    variables = {name: os.environ[name] for name in options.names.split(",") if name in os.environ}
    remove = [command[0], "rm", "--force", options.name]
    # Before the container is there: who is killed between the two leaves a name that nobody bears.
    note = Path(f"{NOTE}.new")
    note.write_text(json.dumps(remove))
    note.replace(NOTE)
    container = subprocess.Popen(command, stdin=subprocess.PIPE)
    lifeline = container.stdin
    assert lifeline is not None
    signal.signal(signal.SIGTERM, lambda *_: lifeline.close())
    with contextlib.suppress(OSError, ValueError):  # it ended, or we were told to, before it heard this
        lifeline.write(json.dumps(variables).encode() + b"\n")
        lifeline.flush()
    code = container.wait()
    remove_noted(".")
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
