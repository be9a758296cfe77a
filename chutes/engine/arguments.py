"""An author's engine arguments before anything is started: the engine's own parser judges them, inside.

A parser costs an engine's imports, tens of seconds: its verdict is kept for as long as the engine's set of
packages, the script that asks it and the arguments are the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chutes.engine import command
from chutes.engine.environment import INSIDE
from chutes.engine.release import EngineRelease
from chutes.exception import EngineEnvironmentError, InvalidSpec

CHECK_SECONDS = 300.0  # some 20 s on two busy cores, most of it imports; cold files on a slow disk take more


def given(args: Sequence[str], short: Mapping[str, str] | None = None) -> set[str]:
    """The flags in `args` in one spelling: `--Flag_name=3`, `--no-flag-name`, `-tp 2` and the like, bare.

    Args:
        short: other spellings of a flag, with their dashes, and its bare name.
    """
    flags: set[str] = set()
    for arg in args:
        name = arg.split("=", 1)[0]
        if short and name in short:
            flags.add(short[name])
        elif name.startswith("--") and len(name) > 2:
            # `--compilation-config.level 3` sets a part of compilation-config.
            flags.add(name[2:].split(".", 1)[0].replace("_", "-").removeprefix("no-"))
    return flags


def left_open(wanted: Mapping[str, Sequence[str]], flags: set[str]) -> list[str]:
    """The words of each default in `wanted` (bare flag → words) that `flags` do not set.

    Engines take any unambiguous beginning of a flag for the flag: `--tensor-parallel 2`.
    """
    return [
        word
        for flag, words in wanted.items()
        if not any(flag.startswith(one) for one in flags)
        for word in words
    ]


@dataclass(frozen=True)
class Judge:
    """How one engine's arguments are judged."""

    script: str
    """Of engine/inside; its last line is the verdict: `check_vllm_arguments.py` says how."""
    reserved: Mapping[str, str]
    """What the platform itself decides, bare flag → why. An author's value would make the instance
    unreachable or unguarded."""

    async def check(
        self,
        python: Path,
        release: EngineRelease,
        args: Sequence[str],
        flags: set[str],
        cache_dir: Path,
        variables: Mapping[str, str],
    ) -> None:
        """Have the engine's parser judge `args`, in its environment; verdicts are kept in `cache_dir`.

        Args:
            flags: of `args`, from `given`.
            variables: as the server itself would get them.

        Raises:
            InvalidSpec: the engine refuses them, in its own words, or they are not the author's to set.
            EngineEnvironmentError: the check itself could not be made.
        """
        for flag, why in self.reserved.items():
            # The parser would take `--serv x`, and the last one wins.
            if any(flag.startswith(one) for one in flags):
                raise InvalidSpec(
                    f"engine_args may not hold --{flag}: {why}.", "Take it out of the chute file."
                )
        if not args:
            return
        script = INSIDE / self.script
        made_of = json.dumps([release.id, release.requirements.read_text(), list(args)]).encode()
        key = hashlib.sha256(made_of + script.read_bytes()).hexdigest()
        kept = cache_dir / f"{release.id}-{key[:32]}.json"
        verdict = _kept(kept)
        if verdict is None:
            verdict = await _ask(python, release, script, args, variables)
            with contextlib.suppress(OSError):  # not kept: the next check costs its seconds again, no more
                cache_dir.mkdir(parents=True, exist_ok=True)
                written = kept.with_suffix(f".{os.getpid()}")
                written.write_text(json.dumps(verdict))
                written.replace(kept)
        if not verdict["ok"]:
            fixes = [f"Did you mean {near} instead of {flag}?" for flag, near in verdict["suggestions"]]
            raise InvalidSpec(
                f"{release.id} refuses engine_args: {verdict['message']}",
                " ".join(fixes) or "Mend engine_args in the chute file.",
            )


def _kept(path: Path) -> dict | None:
    try:
        verdict = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(verdict, dict) and {"ok", "message", "suggestions"} <= verdict.keys()
    return verdict if whole else None


async def _ask(
    python: Path, release: EngineRelease, script: Path, args: Sequence[str], variables: Mapping[str, str]
) -> dict:
    try:
        lines = await command.run(
            [python, script, "--", *args], variables=dict(variables), timeout=CHECK_SECONDS
        )
    except command.CommandFailed as failure:
        last = "\n".join("  " + line[:300] for line in failure.lines[-8:])
        raise EngineEnvironmentError(
            f"The arguments for {release.id} could not be checked ({failure.reason}).\n{last}",
            f"`chutes engines remove {release.id}`; the next start makes it again.",
        ) from None
    for line in reversed(lines):  # libraries may speak after the verdict, while they unload
        with contextlib.suppress(ValueError):
            verdict = json.loads(line)
            if isinstance(verdict, dict) and "ok" in verdict:
                return verdict
    raise EngineEnvironmentError(
        f"The arguments for {release.id} could not be checked: no verdict came.",
        f"`chutes engines remove {release.id}`; the next start makes it again.",
    )
