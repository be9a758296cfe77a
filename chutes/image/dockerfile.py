"""Words of a Dockerfile: how a value is written so that every builder reads it back as it was meant.

Docker, podman and buildah each have a parser of their own; what is written here is what all three agree on.
"""

from __future__ import annotations

import json
import re
import textwrap

from chutes.util.rule import RuleBrokenError

_PLAIN = re.compile(r"[\w$./:@%+,={}\-]+", re.ASCII)
# What authors wrote for the published SDK, which quotes nothing, to have spaces in a value: quotes around the
# whole of it, or a backslash before each. Anything else is the value itself.
_QUOTED_BY_HAND = re.compile(r'"(?=[^"]*\s)(?:[^"\\]|\\.)*"|\'(?=[^\']*\s)[^\']*\'')
_ESCAPED_BY_HAND = re.compile(r"(?:[^\s\"'\\]|\\ )*\\ (?:[^\s\"'\\]|\\ )*")
# `\$` is a dollar sign. A `$` that begins no variable's name is one too: in Docker `$5` would be empty.
_SPECIAL = re.compile(r'\\\$|["\\]|\$(?![A-Za-z_]|\{[A-Za-z_]\w*(?::?[-+?][^}]*)?\})')


def value(text: str) -> str:
    """`text` as the value of ENV or LABEL: `$NAME` and `${NAME}` are expanded, all else arrives as it is.

    Raises:
        RuleBrokenError: it holds a line break, which no value in a Dockerfile can.
    """
    one_line(text, "A value", "Set it in a startup hook instead.")
    if _QUOTED_BY_HAND.fullmatch(text) or _ESCAPED_BY_HAND.fullmatch(text):
        return text
    escaped = _SPECIAL.sub(lambda found: found[0] if len(found[0]) == 2 else "\\" + found[0], text)
    return escaped if escaped == text and _PLAIN.fullmatch(text) else f'"{escaped}"'


def run(command: str) -> str:
    """RUN and a shell command.

    A command over several lines is written with a backslash at each line's end, or is a script: the latter
    goes to the shell as one argument and ends at the first line that fails.

    Raises:
        RuleBrokenError: there is no command in it, or the next line of the file would become part of it.
    """
    text = textwrap.dedent(command).strip()
    if not text or "\0" in text:
        raise RuleBrokenError(
            f"{command!r} is not a command.", 'For instance run_command("pip install torch").'
        )
    if text.endswith("\\"):
        raise RuleBrokenError(
            f"The command {text!r} ends with a backslash.", "It would swallow the next line: take it away."
        )
    *first, _ = lines = text.split("\n")
    if not first or all(re.search(r"\\\s*$", line) for line in first):
        return f"RUN {text}"
    # The shell's form and not a here-document: builders older than 2023 know none.
    return f"RUN {json.dumps(['/bin/sh', '-ec', chr(10).join(lines)])}"


def one_line(text: str, what: str, fix: str) -> str:
    """`text`, if it can stand on one line of a file.

    Raises:
        RuleBrokenError: it cannot.
    """
    if "\n" in text or "\0" in text:
        raise RuleBrokenError(f"{what} in a Dockerfile cannot hold a line break.", fix)
    return text


def words(*parts: str) -> str:
    """Paths of COPY and ADD: as JSON where one has a space or begins as JSON does."""
    plain = all(re.fullmatch(r"[\w$./:@%+,={}*?~\-\[\]]+", part) for part in parts)
    return " ".join(parts) if plain and parts[0][0] != "[" else json.dumps(parts, ensure_ascii=False)
