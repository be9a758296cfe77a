"""The parent of one engine: starts it, keeps its log, and leaves nothing of it behind.

Why a process of its own stands between the platform and an engine. An engine is a tree (vLLM: API server,
engine core, workers), and a tree outlives the death of whoever started it. Three things must hold
whoever dies first, and only a parent that does nothing else can hold them:

- the platform dies (even by SIGKILL): our standard input closes, and we end the tree;
- the engine's first process dies (even by SIGKILL): its orphans are handed to us, because we asked to
  be their reaper, and we end them;
- we die (even by SIGKILL): the engine's first process is killed by the kernel (PR_SET_PDEATHSIG), and
  the platform, whose child we are, sweeps the rest by the mark in their environment.

Run as a script with `python -I -S`, standard library only and nothing of chutes: 12 MB resident, of which
6 are its own (`make bench` measures it).

    minder.py --log FILE --log-bytes N --log-files N --grace SECONDS -- COMMAND ...

Standard input: closing it means stop. Standard output: one line `pid N` once the engine runs. Exit status:
the engine's own, 128 + signal if it was killed, 0 after a stop that was asked for.
"""

import argparse
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class RotatedLog:
    """Appends bytes to FILE; a full FILE becomes FILE.1, and so on, up to a number of files."""

    def __init__(self, path, limit, files):
        self.path, self.limit, self.files = path, limit, files
        self.file = open(path, "ab", buffering=0)  # lives as long as we do
        self.size = self.file.tell()

    def write(self, data):
        # A full disk must not stop the engine: what cannot be written is dropped, not waited for.
        with contextlib.suppress(OSError):
            if self.size + len(data) > self.limit and self.size:
                self.rotate()
            self.file.write(data)
            self.size += len(data)

    def rotate(self):
        self.file.close()
        for number in range(self.files - 1, 0, -1):
            older = f"{self.path}.{number}"
            newer = self.path if number == 1 else f"{self.path}.{number - 1}"
            if os.path.exists(newer):  # pathlib costs 2 MB here
                os.replace(newer, older)
        self.file = open(self.path, "ab", buffering=0)
        self.size = 0


def prctl(option, value):
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def descendants():
    """Process ids of everything below us, nearest first; only Linux tells, through /proc."""
    children = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The command may hold spaces and brackets: count fields from the last bracket.
                    parent = int(file.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found, frontier = [], [os.getpid()]
    while frontier:
        frontier = [child for parent in frontier for child in children.get(parent, ())]
        found += frontier
    return found


def signal_tree(group, number):
    """Signal the engine's process group and every descendant that left the group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
    for pid in descendants():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def reap_adopted(own):
    """Collect orphans that were handed to us and have ended; our own child's end is for its Popen to see."""
    with contextlib.suppress(ChildProcessError):
        while True:
            dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if dead is None or dead.si_pid == own:
                return
            os.waitpid(dead.si_pid, 0)


def reap():
    """Collect every dead child, adopted ones too; True while any child is left."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True


def end_tree(group, grace, meanwhile):
    """SIGTERM, wait up to `grace` seconds, SIGKILL the rest; `meanwhile` runs at each look."""
    signal_tree(group, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while reap() and time.monotonic() < deadline:
        meanwhile()
        time.sleep(0.05)
    # A few rounds: a process that forks while being killed is met again in the next.
    for _ in range(100):
        if not reap():
            break
        signal_tree(group, signal.SIGKILL)
        time.sleep(0.05)
    meanwhile()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", required=True)
    parser.add_argument("--log-bytes", type=int, required=True)
    parser.add_argument("--log-files", type=int, required=True)
    parser.add_argument("--grace", type=float, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command

    prctl(PR_SET_CHILD_SUBREAPER, 1)
    log = RotatedLog(options.log, options.log_bytes, options.log_files)
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the platform, which then closes our input
    # A signal or a dead child must wake select(): its handler's byte does.
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    try:
        engine = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # no threads here
        )
    except OSError as error:
        log.write(f"{command[0]}: {error.strerror}\n".encode())
        return 127
    print(f"pid {engine.pid}", flush=True)

    assert engine.stdout is not None
    output = engine.stdout.fileno()
    watched = [0, output, wake_read]
    while not stop and engine.poll() is None:
        reap_adopted(engine.pid)
        for ready in select.select(watched, [], [], 5.0)[0]:
            if ready == output:
                data = os.read(output, 65536)
                if data:
                    log.write(data)
                else:
                    watched.remove(output)
            elif ready == wake_read:
                os.read(wake_read, 4096)
            elif not os.read(0, 4096):
                stop.append(1)

    asked = engine.poll() is None
    os.set_blocking(output, False)
    end_tree(engine.pid, options.grace, lambda: pump(output, log))
    code = 0 if asked else engine.returncode
    return code if code >= 0 else 128 - code


def pump(output, log):
    """Move what the engine has written so far: its last words matter most, and it must not block on them."""
    with contextlib.suppress(BlockingIOError, OSError):
        while data := os.read(output, 65536):
            log.write(data)


if __name__ == "__main__":
    sys.exit(main())
