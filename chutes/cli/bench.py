"""bench: hands over to the harness, a package of its own beside this one that nothing here imports."""

from __future__ import annotations

import runpy
import sys


def bench(arguments: list[str]) -> None:
    """Run `python -m benchmarks ARGUMENTS` in this process; ends with its exit code."""
    sys.argv = ["chutes bench", *arguments]
    main = runpy.run_module("benchmarks", run_name="benchmarks.__main__")["main"]
    sys.exit(main(arguments, "chutes bench"))
