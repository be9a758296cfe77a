"""Which tensors of a quantised model are left as they were.

Checkpoints list them by name: exactly, as a whole subtree, with wildcards, or as a regular expression after
`re:`. A name in such a list means that module and all within it (vLLM `is_layer_skipped` and, for
wildcards, modelopt.py `apply_vllm_mapper` and `is_layer_excluded`, 0.32).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fnmatch import translate
from typing import Any

from chutes.model.attention import Unknown
from chutes.model.pieces import Piece
from chutes.model.quantization import Quantization

# Where the language model begins: pieces are named as the first, checkpoints use all.
_ROOTS = ("model.", "language_model.model.", "model.language_model.", "language_model.", "backbone.")
_ROOT = re.compile("|".join(f"^{re.escape(root)}" for root in _ROOTS[1:]))

_LISTS = ("ignore", "exclude_modules", "modules_to_not_convert", "llm_int8_skip_modules")


def marked(pieces: Iterable[Piece], text: Mapping[str, Any], quantization: Quantization) -> list[Piece]:
    """The pieces, those that are not quantised marked so.

    Raises:
        Unknown: a list has a regular expression that is none.
    """
    found = text.get("quantization_config") or text.get("compression_config") or {}
    experts_only = quantization.method == "mxfp4" and found.get("quant_method") == "mxfp4"
    experts_only |= found.get("targets") == "routed experts only"
    left_out = _matcher(found)

    def plain(piece: Piece) -> bool:
        if experts_only and piece.part != "expert":
            return True
        return left_out is not None and any(left_out(name) for name in piece.modules)

    return [replace(piece, quantised=False) if plain(piece) else piece for piece in pieces]


def _matcher(found: Mapping[str, Any]) -> Callable[[str], bool] | None:
    """Whether a name is left out; None where nothing is listed."""
    names, patterns = set[str](), list[str]()
    listed = [str(name) for key in _LISTS for name in found.get(key) or []]
    # GPTQModel: a rule that begins with `-:` is a regular expression of what is left out.
    dynamic = found.get("dynamic")
    listed += [f"re:{rule[2:]}" for rule in dynamic or {} if rule.startswith("-:")]
    if not listed:
        return None
    for name in listed:
        if name.startswith("re:"):
            patterns.append(name[3:])
            continue
        bare = _ROOT.sub("model.", name)
        # `layers.1*` means layer 1 and what is in it, and not layer 10 as well.
        bare = bare.removesuffix(".*") if bare.endswith(".*") else bare.removesuffix("*")
        if re.search(r"[*?\[]", bare):
            patterns += [translate(bare), translate(f"{bare}.*")]
        elif bare:
            names.add(bare)
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise Unknown(f"a list of what is not quantised has a wrong regular expression: {error}") from None

    def matches(name: str) -> bool:
        parts = name.split(".")
        inside = (
            ".".join(parts[begin:end])
            for begin in range(len(parts))
            for end in range(begin + 1, len(parts) + 1)
        )
        if any(one in names for one in inside):
            return True
        bare = name.removeprefix("model.")
        spelt = [name] if bare == name else [f"{root}{bare}" for root in _ROOTS]
        return any(pattern.match(one) for pattern in compiled for one in spelt)

    return matches
