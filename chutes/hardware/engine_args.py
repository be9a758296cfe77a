"""A plan as engine arguments, and engine arguments as what they fix of a plan.

`parse(engine, render(engine, ...))` gives back what was rendered: what the planner counted is what the engine
is told. Flags: vLLM `engine/arg_utils.py` 0.32, SGLang `server_args.py` 0.5.23.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict

from chutes.exception import InvalidSpec
from chutes.hardware.memory import Layout, Setting


class Fixed(BaseModel):
    """What an author's arguments fix. None: they say nothing of it."""

    model_config = ConfigDict(frozen=True)

    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    expert_parallel: bool | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_dtype: str | None = None
    gpu_memory_utilization: float | None = None
    block_size: int | None = None
    enforce_eager: bool | None = None
    uncounted: tuple[str, ...] = ()
    """Flags that change how much memory is used in ways the arithmetic does not know."""


_VLLM = {
    "tensor_parallel": "--tensor-parallel-size",
    "pipeline_parallel": "--pipeline-parallel-size",
    "expert_parallel": "--enable-expert-parallel",
    "max_model_len": "--max-model-len",
    "gpu_memory_utilization": "--gpu-memory-utilization",
    "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "kv_cache_dtype": "--kv-cache-dtype",
    "block_size": "--block-size",
    "enforce_eager": "--enforce-eager",
}
_SGLANG = {
    "tensor_parallel": "--tp-size",
    "pipeline_parallel": "--pp-size",
    "expert_parallel": "--ep-size",
    "max_model_len": "--context-length",
    "gpu_memory_utilization": "--mem-fraction-static",
    "max_num_seqs": "--max-running-requests",
    "max_num_batched_tokens": "--chunked-prefill-size",
    "kv_cache_dtype": "--kv-cache-dtype",
    "block_size": "--page-size",
    "enforce_eager": "--disable-cuda-graph",
}
FLAGS = {"vllm": _VLLM, "sglang": _SGLANG}

_OTHER_SPELLINGS = {
    "vllm": {
        "-tp": "--tensor-parallel-size",
        "-pp": "--pipeline-parallel-size",
        "-ep": _VLLM["expert_parallel"],
    },
    "sglang": {
        "--tensor-parallel-size": "--tp-size",
        "--tp": "--tp-size",
        "--pipeline-parallel-size": "--pp-size",
        "--pp": "--pp-size",
        "--expert-parallel-size": "--ep-size",
        "--ep": "--ep-size",
    },
}

_UNCOUNTED = (
    "speculative-config",
    "speculative-algorithm",
    "quantization",
    "data-parallel-size",
    "decode-context-parallel-size",
    "cpu-offload-gb",
    "kv-cache-memory-bytes",
    "num-gpu-blocks-override",
    "max-total-tokens",
    "enable-lora",
    "hf-overrides",
)


def render(engine: str, layout: Layout, setting: Setting) -> list[str]:
    """The arguments that make `engine` do what was planned. None in `setting` is left to the engine."""
    flags = FLAGS[engine]
    words = [flags["tensor_parallel"], str(layout.tensor_parallel)]
    if layout.pipeline_parallel > 1:
        words += [flags["pipeline_parallel"], str(layout.pipeline_parallel)]
    if layout.expert_parallel:
        words.append(flags["expert_parallel"])
        if engine == "sglang":  # a size there, a switch in vLLM
            words.append(str(layout.tensor_parallel))
    for field in (
        "max_model_len",
        "gpu_memory_utilization",
        "max_num_seqs",
        "max_num_batched_tokens",
        "block_size",
    ):
        if (value := getattr(setting, field)) is not None:
            words += [flags[field], f"{value:g}" if isinstance(value, float) else str(value)]
    if setting.kv_cache_dtype != "auto":
        words += [flags["kv_cache_dtype"], "fp8_e4m3" if engine == "sglang" else setting.kv_cache_dtype]
    if setting.enforce_eager:
        words.append(flags["enforce_eager"])
    return words


def added(engine: str, layout: Layout, setting: Setting, args: Sequence[str]) -> list[str]:
    """What `render` gives without those that the author gave, in `args`."""
    given = {name for name, value in parse(engine, args).model_dump().items() if value is not None}
    words = render(engine, layout, setting)
    flags = FLAGS[engine]
    kept: list[str] = []
    skip = False
    of_author = {flags[name] for name in given if name in flags}
    for position, word in enumerate(words):
        if skip:
            skip = False
            continue
        takes_value = position + 1 < len(words) and not words[position + 1].startswith("--")
        # The block is the engine's own business unless somebody asked: hybrids choose it while they start.
        if word in of_author or word == flags["block_size"]:
            skip = takes_value
            continue
        kept.append(word)
    return kept


def for_vectors(words: Sequence[str], context: int | None, *, encoder: bool) -> list[str]:
    """A plan's arguments without those that vLLM knows better where it makes vectors instead of text.

    A context that was not cut: files beside config.json may allow less, and vLLM refuses more than that. A
    decoder's batch: with mean pooling it must hold a whole text, which vLLM sees to by itself.

    Args:
        context: the model's own, as config.json says.
    """
    following = dict(pairwise([*words, ""]))
    drop: set[str] = set()
    if following.get("--max-model-len") == str(context):
        drop.add("--max-model-len")
    if not encoder:
        drop.add("--max-num-batched-tokens")
    return [word for before, word in pairwise(["", *words]) if not {word, before} & drop]


def parse(engine: str, args: Sequence[str]) -> Fixed:
    """What `args` fix, in any spelling that the engine takes; the last one of a flag wins, as there.

    Raises:
        InvalidSpec: a number that is none, or a KV cache dtype that the planner does not know.
    """
    found: dict[str, Any] = {}
    uncounted: list[str] = []
    fields = {flag: field for field, flag in FLAGS[engine].items()}
    words = list(args)
    for position, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if not re.match(r"--?[a-zA-Z]", flag):
            continue
        flag = flag.replace("_", "-") if flag.startswith("--") else flag
        flag = _OTHER_SPELLINGS[engine].get(flag, flag)
        bare = flag.lstrip("-").split(".", 1)[0]
        if bare in _UNCOUNTED:
            uncounted.append(f"--{bare}")
        switched_off = flag.startswith("--no-")
        field = fields.get("--" + bare.removeprefix("no-") if switched_off else flag)
        if field is None:
            continue
        if field in _SWITCHES[engine]:
            found[field] = not switched_off
            continue
        if not equals:
            value = words[position + 1] if position + 1 < len(words) else ""
        read = _READERS.get(field, _whole)
        found[field] = read(flag, value)
    return Fixed(**found, uncounted=tuple(dict.fromkeys(uncounted)))


_SWITCHES = {"vllm": {"expert_parallel", "enforce_eager"}, "sglang": {"enforce_eager"}}


def _whole(flag: str, value: str) -> int | None:
    """vLLM reads `8k` as 8000 and `8K` as 8192, and so on; `auto` and -1 leave it to the engine."""
    if value in ("auto", "-1"):
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", value)
    if match is None or ("." in match[1] and not match[2]):
        raise InvalidSpec(f"engine_args: {flag} {value!r} is not a whole number.", "Write it in digits.")
    scale = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[match[2]]
    return int(float(match[1]) * scale) if match[2] else int(match[1])


def _share(flag: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise InvalidSpec(
            f"engine_args: {flag} {value!r} is not a share.", "Give a number above 0, at most 1."
        )
    return share


def _kv_dtype(flag: str, value: str) -> str:
    if value in ("auto", "bfloat16", "float16"):
        return "auto"
    if value.startswith("fp8"):  # fp8_e4m3, fp8_e5m2, fp8_inc: one byte each
        return "fp8"
    raise InvalidSpec(
        f"engine_args: {flag} {value!r} is not a cache format that can be planned.", "Take auto or fp8."
    )


def _experts(flag: str, value: str) -> bool:
    return (_whole(flag, value) or 1) > 1


_READERS: dict[str, Callable[[str, str], Any]] = {
    "gpu_memory_utilization": _share,
    "kv_cache_dtype": _kv_dtype,
    "expert_parallel": _experts,
}
