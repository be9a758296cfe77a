"""`engine_args=` in each form that people write it, to one list of command-line words."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from chutes.exception import InvalidSpec

_SERVED_NAME = (
    "You may not override served model name!",
    "The chute's name is the served name: leave --served-model-name out.",
)
_API_KEY = (
    "You may not set --api-key in engine_args: the platform makes a key for each instance.",
    "Leave it out; callers use keys from `chutes keys create`.",
)
_REVISION = (
    "Revision is now a top-level argument to build_{engine}_chute!",
    'Write revision="..." beside engine_args and take --revision out of it.',
)
_OWNED = {
    "--served-model-name": _SERVED_NAME,
    "--api-key": _API_KEY,
    "--revision": _REVISION,
    **{
        flag: (f"You may not set {flag} in engine_args.", "The model is the argument model_name=.")
        for flag in ("--model", "--model-path")
    },
    **{
        flag: (
            f"You may not set {flag} in engine_args: the platform chooses where the engine listens.",
            f"Leave {flag} out.",
        )
        for flag in ("--port", "--host", "--uds")
    },
}
_TENSOR_PARALLEL = "--tensor-parallel-size"
_TP_ALIASES = ("--tp", "-tp")


def split(engine_args: str | Mapping[str, Any] | Sequence[str] | None, engine: str = "vllm") -> list[str]:
    """Command-line words of `engine_args`.

    Args:
        engine_args: a command line (quotes and line continuations work, and a JSON value may stand
            unquoted); a mapping from option to value, where True is the bare flag, False its `--no-`
            form, None leaves it out and a list or dict becomes JSON; a list of words; or None.
        engine: whose they are. SGLang has no `--no-` forms: False leaves the option out.

    Raises:
        InvalidSpec: it cannot be read, or sets what the platform sets itself.
    """
    if engine_args is None:
        words: list[str] = []
    elif isinstance(engine_args, str):
        words = _from_text(engine_args)
    elif isinstance(engine_args, Mapping):
        words = [
            word for option, value in engine_args.items() for word in _from_item(str(option), value, engine)
        ]
    else:
        words = [str(word) for word in engine_args]
    return _checked(words, engine)


def _from_text(text: str) -> list[str]:
    text = re.sub(r"\\[ \t]*\r?\n", " ", text)  # a continuation; shlex would keep the line break
    try:
        return shlex.split(_json_quoted(text))
    except ValueError as error:
        raise InvalidSpec(
            f"engine_args cannot be split into words: {error}.", "Check its quotes, or write it as a list."
        ) from None


def _json_quoted(text: str) -> str:
    """Put quotes round JSON values that stand bare.

    The published SDK splits on white space alone, so `--x {"a":1}` works there; a shell would eat its
    quotes.
    """
    decoder = json.JSONDecoder()
    parts: list[str] = []
    quote = ""
    i = 0
    while i < len(text):
        ch = text[i]
        if ch == "\\" and quote != "'":
            parts.append(text[i : i + 2])
            i += 2
            continue
        if quote:
            quote = "" if ch == quote else quote
        elif ch in "'\"":
            quote = ch
        elif ch in "{[" and (i == 0 or text[i - 1].isspace() or text[i - 1] == "="):
            try:
                _, end = decoder.raw_decode(text, i)
            except ValueError:
                end = i
            if end > i and (end == len(text) or text[end].isspace()):
                parts.append(shlex.quote(text[i:end]))
                i = end
                continue
        parts.append(ch)
        i += 1
    return "".join(parts)


def _from_item(option: str, value: Any, engine: str) -> list[str]:
    name = option.lstrip("-").replace("_", "-")
    flag = option.replace("_", "-") if option.startswith("-") else f"--{name}"
    if value is None or (value is False and engine == "sglang"):
        return []
    if value is True:
        return [flag]
    if value is False:
        return [f"--no-{name}"]
    return [flag, json.dumps(value) if isinstance(value, (dict, list, tuple)) else str(value)]


def _checked(words: list[str], engine: str) -> list[str]:
    if words and not words[0].startswith("-"):
        raise InvalidSpec(
            f"engine_args begins with {words[0]!r}, which is not an option.",
            "Begin with one such as '--max-model-len 8192'; the model is the argument model_name=.",
        )
    names = [_option(word) for word in words]
    for name in names:
        if name in _OWNED:
            message, fix = _OWNED[name]
            raise InvalidSpec(message.format(engine=engine), fix)
    if _TENSOR_PARALLEL in names and any(alias in names for alias in _TP_ALIASES):
        raise InvalidSpec(
            "engine_args gives the tensor parallel size twice: both --tensor-parallel-size and --tp.",
            "Please use only --tensor-parallel-size.",
        )
    # One spelling, so that whoever plans the hardware has one to look for.
    return [
        _canonical(word) if name in _TP_ALIASES else word for word, name in zip(words, names, strict=True)
    ]


def _option(word: str) -> str:
    """The option that a word sets, in the spelling with dashes (vLLM takes underscores too); else ""."""
    if not re.match(r"--?[a-zA-Z]", word):
        return ""
    return word.partition("=")[0].replace("_", "-").lower()


def _canonical(word: str) -> str:
    _, equals, value = word.partition("=")
    return f"{_TENSOR_PARALLEL}{equals}{value}"
