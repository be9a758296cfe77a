"""From an engine's last lines to a sentence with a fix."""

from __future__ import annotations

import pytest

from chutes.engine.diagnosis import LINES_SHOWN, diagnose


@pytest.mark.parametrize(
    ("log", "says", "fatal"),
    [
        (
            "(EngineCore pid=12) ERROR 11-22 02:30:00 [core.py:99] torch.OutOfMemoryError: "
            "CUDA out of memory. Tried to allocate 2.00 GiB.",
            "GPU ran out of memory",
            True,
        ),
        (
            "ValueError: To serve at least one request with max seq len 8192, 4 GiB KV cache is needed",
            "KV cache",
            True,
        ),
        ("ValueError: User-specified max_model_len (99999) is greater than 8192", "context length", True),
        ("OSError: [Errno 98] Address already in use", "port was taken", False),
        ("OSError: [Errno 28] No space left on device", "disk is full", True),
        ("api_server.py: error: unrecognized arguments: --max-modl-len", "--max-modl-len", True),
        ("OSError: /x does not appear to have a file named config.json.", "A file is missing", True),
        ("RuntimeError: Cannot find any model weights with `/x`", "holds no weights", True),
        (
            "ValueError: Available memory on node 0 on kv cache allocation is less than requested memory.",
            "too small for the KV cache",
            True,
        ),
        (
            "KeyError: 'why'\nRuntimeError: Engine core initialization failed. See root cause above.",
            "'why'",
            False,
        ),
        ("ModuleNotFoundError: No module named 'torchvision'", "lacks a package", True),
        ("Traceback\nRuntimeError: something else", "something else", False),
        (
            "ValueError: Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static=0.4",
            "KV cache does not fit",
            True,
        ),
        (
            "Responses API disabled: init failed (ModuleNotFoundError: No module named 'x')\nKeyError: 'why'",
            "'why'",
            False,
        ),
    ],
)
def test_known_causes(log: str, says: str, fatal: bool) -> None:
    reason = diagnose("some earlier line\n" + log + "\n", 1)
    assert says in reason.summary
    assert reason.fatal is fatal
    assert reason.fix


def test_the_cause_wins_over_what_follows_from_it() -> None:
    log = "torch.OutOfMemoryError: CUDA out of memory.\nRuntimeError: Engine core initialization failed.\n"
    assert "ran out of memory" in diagnose(log, 1).summary


def test_a_kill_names_the_likely_killer() -> None:
    reason = diagnose("all was well\n", 137)
    assert "SIGKILL" in reason.summary
    assert "memory" in reason.fix
    assert not reason.fatal


def test_an_unknown_end_still_says_the_status_and_shows_the_log() -> None:
    reason = diagnose("\n".join(f"line {n}" for n in range(100)), 3)
    assert "status 3" in reason.summary
    assert reason.lines == tuple(f"line {n}" for n in range(100 - LINES_SHOWN, 100))


def test_an_empty_log() -> None:
    assert diagnose("", None).lines == ()
