"""Commands that end with the process that started them, however it ended.

`pip` installing an engine takes minutes. Without this, a platform that was killed left it at work, in a
directory that the next platform had already begun to make anew.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Between fork and exec a process of several threads may call nothing that takes a lock, so that the
# request to the kernel is made by a small Python of its own, which then becomes the command: the request
# outlives exec. The parent may have died before the request was made; then nobody would ever send it.
_BECOME = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


def mortal(command: Sequence[str | Path]) -> list[str]:
    """`command`, wrapped so that the kernel kills it when the calling thread's process dies."""
    return [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *map(str, command)]
