"""Where this code runs: on the author's machine, or inside an instance.

One chute file is loaded in both places. An instance sets `CHUTES_EXECUTION_CONTEXT=REMOTE`.
"""

from __future__ import annotations

import os


def is_remote() -> bool:
    """True inside an instance, where hooks run and cords execute their own code."""
    return os.environ.get("CHUTES_EXECUTION_CONTEXT") == "REMOTE"


def is_local() -> bool:
    """True on the author's machine, where calling a cord calls the platform."""
    return not is_remote()
