"""A command that must not outlive whoever started it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import psutil

from chutes.mortal import mortal
from tests.integration.platform_kit import gone, until


def test_it_is_the_command() -> None:
    done = subprocess.run(mortal(["sh", "-c", "echo out; exit 3"]), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "out\n")
    done = subprocess.run(mortal(["/no/such/program"]), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "/no/such/program: No such file or directory\n"


def test_it_ends_with_a_killed_parent() -> None:
    parent = textwrap.dedent("""
        import subprocess, time
        from chutes.mortal import mortal
        child = subprocess.Popen(mortal(["sleep", "600"]))
        print(child.pid, flush=True)
        time.sleep(600)
    """)
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        until(lambda: child.name() == "sleep")
        process.kill()
    until(lambda: gone(child), 5)
