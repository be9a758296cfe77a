"""How the command line speaks: rich on a terminal, plain lines anywhere else.

Answers go to standard output, everything else (progress, notes, errors) to standard error, so that
`chutes ps --json | jq` and `key=$(chutes keys create --name ci)` work.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

from chutes.exception import ChutesError

DOES_NOT_FIT = 3
"""Exit code of `--check` when the answer is no: neither a failure nor a wrong question."""

BAR_CELLS = 20
REPEAT_SECONDS = 10.0  # a piped progress line is said again after this long, so that a log shows life


def on_terminal() -> bool:
    """Whether a person watches and can answer."""
    return sys.stderr.isatty() and sys.stdin.isatty()


def tame_streams() -> None:
    """What a terminal's encoding lacks is written as `?` by whoever does not come through `say`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def say(text: str = "") -> None:
    """An answer, on standard output."""
    sys.stdout.write(writable(text, sys.stdout.encoding) + "\n")
    sys.stdout.flush()


def note(text: str = "") -> None:
    """A remark, on standard error."""
    sys.stderr.write(writable(text, sys.stderr.encoding) + "\n")
    sys.stderr.flush()


# What stands in where an encoding has no such character: a bar must still be a bar.
_PLAIN = str.maketrans(
    {
        **{"×": "x", "·": ".", "…": "...", "✓": "ok", "≠": "!", "—": "-", "–": "-", "→": "->"},
        **{"█": "#", "▓": "=", "▒": "~", "░": ":", "▞": "%", "━": "=", "╌": "-", "’": "'"},
    }
)


def writable(text: str, encoding: str | None) -> str:
    """`text` as a stream of this encoding can take it."""
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return text.translate(_PLAIN).encode(encoding or "ascii", "replace").decode(encoding or "ascii")
    except LookupError:
        return text.translate(_PLAIN)
    return text


def document(value: Any) -> None:
    """An answer for a script."""
    # Escapes where the encoding is not UTF-8: a script gets every character back from them.
    plain = (sys.stdout.encoding or "utf-8").lower().replace("-", "") != "utf8"
    say(json.dumps(value, indent=2, ensure_ascii=plain))


def failure(error: ChutesError, *, as_json: bool = False) -> None:
    """An error and its fix; for a script as one object."""
    if as_json:
        said = {"error": error.message, "fix": error.fix, "exit_code": error.exit_code}
        note(json.dumps(said, ensure_ascii=True))
        return
    prefix = "\x1b[1;31merror:\x1b[0m" if sys.stderr.isatty() else "error:"
    note(f"{prefix} {error.message}")
    if error.fix:
        note(f"  fix: {error.fix}")


def confirm(question: str) -> bool:
    """Ask a person; yes is the default. Not to be called when nobody can answer."""
    sys.stderr.write(f"{question} [Y/n] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("", "y", "yes")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under headings. On a terminal the last column wraps; piped, nothing is cut."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for name in head:
            # A name is there to be copied: it is never cut. Long remarks wrap.
            drawn.add_column(name, no_wrap=name in ("NAME", "SLUG"), overflow="fold")
        for row in rows:
            drawn.add_row(*map(escape, row))
        Console().print(drawn)
        return
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class Progress(Protocol):
    """Long work, shown while it lasts."""

    def show(self, phase: str, detail: str = "", done: int = 0, total: int = 0) -> None: ...

    def close(self) -> None: ...


class PlainProgress:
    """A line whenever the phase or what it does changes, and now and then while it lasts."""

    def __init__(self) -> None:
        self._last = ("", "")
        self._said = 0.0
        self._began = time.monotonic()

    def show(self, phase: str, detail: str = "", done: int = 0, total: int = 0) -> None:
        now = time.monotonic()
        if (phase, detail) == self._last and now - self._said < REPEAT_SECONDS:
            return
        # Hundreds of packages flash by: a new phase is always said, a new detail once a second.
        if phase == self._last[0] and now - self._said < 1.0:
            return
        self._last, self._said = (phase, detail), now
        share = f" {done / total:.0%}" if total else ""
        note(f"[{now - self._began:5.1f} s] {phase}{': ' + detail if detail else ''}{share}")

    def close(self) -> None:
        pass


class TerminalProgress:
    """One line that is drawn over: time, phase, a bar when there is a total, what it does."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress as RichProgress
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = RichProgress(
            SpinnerColumn(),
            TimeElapsedColumn(),
            TextColumn("[bold]{task.fields[phase]}"),
            TextColumn("{task.fields[share]}"),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", phase="", share="", total=None)
        self._progress.start()

    def show(self, phase: str, detail: str = "", done: int = 0, total: int = 0) -> None:
        # A bar of our own: rich's takes the width that the words need when a total is not known.
        filled = round(BAR_CELLS * done / total) if total else 0
        share = f"{'━' * filled}{'╌' * (BAR_CELLS - filled)} {done / total:4.0%}" if total else ""
        self._progress.update(self._task, description=detail[:60], phase=phase, share=share)

    def close(self) -> None:
        self._progress.stop()


def progress() -> Progress:
    return TerminalProgress() if sys.stderr.isatty() else PlainProgress()


def size(count: int | None) -> str:
    """Bytes for a person: `1.4 GiB`."""
    if count is None:
        return "?"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def age(seconds: float) -> str:
    """A duration for a person: `42s`, `7m`, `3h`, `2d`."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "m"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f}{name}"
    return f"{seconds / 86400:.0f}d"
