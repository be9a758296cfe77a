"""The first process of a container: runs a command and ends it when nobody holds our standard input any more.

A container is not a child of whoever asked for it: `docker run` killed leaves it running, with its GPUs. What
does reach it is the end of its standard input, whoever was killed. The first line there is a JSON object of
environment variables for the command: so no secret is in the container's settings, which `docker inspect`
shows. CHUTES_MOUNTS among them is for us: the directories of the machine that are mounted here.

    lifeline.py GRACE_SECONDS COMMAND ...

Standard library only. Being process 1 it also collects orphans. Where we are root, what the command made in
those directories is given to their owner in the end: who could not remove it otherwise. Exit status: the
command's own, 128 + signal if it was killed, 0 after a stop that was asked for.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path


def main():
    grace, command = float(sys.argv[1]), sys.argv[2:]
    first = sys.stdin.buffer.readline()
    if not first:
        return 0  # nobody was there to begin with
    variables = json.loads(first)
    owners = {path: Path(path).stat() for path in variables.pop("CHUTES_MOUNTS").split(os.pathsep)}
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, **variables})
    stopped = threading.Event()

    def stop():
        if not stopped.is_set():
            stopped.set()
            end(child.pid, signal.SIGTERM)
            time.sleep(grace)
            end(-1 if os.getpid() == 1 else child.pid, signal.SIGKILL)  # -1: everything in the container

    def until_let_go():
        while sys.stdin.buffer.read(4096):
            pass
        stop()

    def told(*_):
        threading.Thread(target=stop, daemon=True).start()

    threading.Thread(target=until_let_go, daemon=True).start()
    signal.signal(signal.SIGTERM, told)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        pid, status = os.waitpid(-1, 0)  # not child.wait(): orphans are ours too
        if pid == child.pid:
            break
    if os.geteuid() == 0:
        hand_over(owners)
    code = os.waitstatus_to_exitcode(status)
    return 0 if stopped.is_set() else code if code >= 0 else 128 - code


def hand_over(owners):
    """Give all that is in directories to their owners as these were at first: links themselves, not what they
    lead to. A user's number is as this container counts: podman's user may be our root."""
    for place, owner in owners.items():
        with contextlib.suppress(OSError, RecursionError):
            for _, directories, files, here in os.fwalk(place):
                for name in (*directories, *files):
                    with contextlib.suppress(OSError):
                        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=here, follow_symlinks=False)


def end(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main())  # not sys.exit: a thread may still wait for our input
