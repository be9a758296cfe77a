"""Why an engine ended: from the last lines of its log to a sentence a person can act on.

Pure: text in, `Reason` out. Each cause names the line it was learned from. A cause that would come back
unchanged on the next start is `fatal`: such an instance is not started again by itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LINES_SHOWN = 12  # enough for the end of a traceback, few enough for one screen


@dataclass(frozen=True)
class Reason:
    """Why an instance is not running."""

    summary: str
    """One sentence."""
    fix: str = ""
    fatal: bool = False
    """Starting again the same way would end the same way."""
    lines: tuple[str, ...] = ()
    """The last lines of the engine's log."""


@dataclass(frozen=True)
class _Cause:
    pattern: re.Pattern[str]
    summary: str
    """A template: `{0}` is the pattern's first group."""
    fix: str
    fatal: bool = True


OWN_CODE = re.compile(r"\nchutes: (fatal|failed): ([^\n]*)")
"""What the instance of an author's own code says last; see `chute/instance`."""


def _cause(pattern: str, summary: str, fix: str, fatal: bool = True) -> _Cause:
    return _Cause(re.compile(pattern, re.IGNORECASE), summary, fix, fatal)


# The most telling first: a traceback that ends in "Engine core initialization failed" says why further up.
_CAUSES = (
    _cause(
        r"((?:torch\.)?(?:cuda\.)?OutOfMemoryError[^\n]*|CUDA out of memory[^\n]*)",
        "The GPU ran out of memory: {0}",
        "Lower --max-model-len or --max-num-seqs in engine_args, raise gpu_count, or free the GPU.",
    ),
    _cause(
        r"(Free memory on device[^\n]*less than desired[^\n]*)",
        "The GPU is in use by another program: {0}",
        "Stop the other program, or lower --gpu-memory-utilization in engine_args.",
        fatal=False,
    ),
    _cause(
        r"ValueError: (To serve at least one request[^\n]*|No available memory for the cache blocks[^\n]*)",
        "The KV cache does not fit: {0}",
        "Lower --max-model-len in engine_args, or give the chute more memory.",
    ),
    _cause(
        r"\n\w+Error: (Loaded weights leave no GPU memory[^\n.]*|Not enough memory\.[^\n]*)",
        "The KV cache does not fit: {0}",
        "Raise --mem-fraction-static in engine_args, or give the chute more memory.",
    ),
    _cause(
        r"(User-specified max_model_len[^\n.]*)",
        "The context length is more than the model has: {0}",
        "Lower --max-model-len in engine_args.",
    ),
    _cause(
        r"(Available memory on node[^\n]*less than requested memory[^\n]*)",
        "Main memory is too small for the KV cache: {0}",
        "Free memory, or lower kv_cache_max_gib in hardware_profiles.yaml.",
    ),
    _cause(
        r"(address already in use|EADDRINUSE)",
        "The engine's port was taken between the test and the start ({0}).",
        "It is started again on another port.",
        fatal=False,
    ),
    _cause(
        r"(No space left on device)",
        "The disk is full ({0}).",
        "Free some space; `chutes engines remove` and CHUTES_CACHE help.",
    ),
    _cause(
        r"(?:error: unrecognized arguments|unrecognized arguments): ([^\n]*)",
        "The engine does not know these arguments: {0}",
        "Mend engine_args in the chute file.",
    ),
    _cause(
        r"(Cannot find any model weights[^\n]*)",
        "The model's directory holds no weights: {0}",
        "Check the directory, or remove it from the cache so that it is fetched again.",
    ),
    _cause(
        r"(?:FileNotFoundError|OSError): ([^\n]*(?:No such file|does not appear to have a file)[^\n]*)",
        "A file is missing: {0}",
        "Check the model's directory, or remove it from the cache so that it is fetched again.",
    ),
    _cause(
        r"(Model architectures \[[^\]]*\] (?:are not supported|failed to be inspected)[^\n]*)",
        "The engine cannot serve this model: {0}",
        "Choose another engine or engine version.",
    ),
    _cause(
        # At a line's beginning: SGLang mentions in passing what it does without.
        r"\nModuleNotFoundError: (No module named [^\n]*)",
        "The engine's environment lacks a package: {0}",
        "`chutes engines remove` it; the next start makes it again.",
    ),
    _cause(
        # vLLM ends with "Engine core initialization failed. See root cause above.": not the cause.
        r"\n(?:\w+Error|\w+Exception|pydantic[\w.]*ValidationError): (?!Engine core init)([^\n]{1,400})",
        "The engine raised: {0}",
        "See `chutes logs` for the whole traceback.",
        fatal=False,
    ),
)

SIGKILL_CODE = 128 + 9


def diagnose(log_tail: str, exit_code: int | None, own_code: bool = False) -> Reason:
    """Name the cause of an engine's end.

    Args:
        log_tail: the last part of its log, some tens of kilobytes.
        exit_code: its exit status; 128 + n when signal n killed it; None when it still runs.
        own_code: the log is of an author's own code, in which tracebacks mean nothing: cords raise them.
    """
    text = _strip_prefixes(log_tail)
    lines = tuple(line for line in text.splitlines() if line.strip())[-LINES_SHOWN:]
    if own_code and (said := list(OWN_CODE.finditer("\n" + text))):
        kind, what = said[-1].groups()
        return Reason(f"{what}", "`chutes logs` has the whole of it.", kind == "fatal", lines)
    for cause in () if own_code else _CAUSES:
        # The last one: a log may hold an earlier, survived complaint of the same kind.
        found = list(cause.pattern.finditer("\n" + text))
        if found:
            detail = found[-1].group(1).strip().rstrip(".")
            return Reason(cause.summary.format(detail), cause.fix, cause.fatal, lines)
    if exit_code == SIGKILL_CODE:
        return Reason(
            "The engine was killed (SIGKILL).",
            "If nobody did so by hand, the kernel did for want of memory: see `dmesg`, take a smaller model.",
            False,
            lines,
        )
    if exit_code is not None and exit_code > 128:
        return Reason(
            f"The engine was ended by signal {exit_code - 128}.", "See `chutes logs`.", False, lines
        )
    return Reason(f"The engine ended by itself with status {exit_code}.", "See `chutes logs`.", False, lines)


def _strip_prefixes(text: str) -> str:
    """Drop vLLM's `(EngineCore pid=12)` and `ERROR 11-22 02:30:00 [core.py:12]` before a line's own text."""
    text = re.sub(r"(?m)^\((?:\w+) pid=\d+\) ?", "", text)
    return re.sub(r"(?m)^(?:ERROR|INFO|WARNING|DEBUG) [\d-]+ [\d:.]+ \[[^\]]*\] ?", "", text)
