"""What forbids a layout before any byte is counted: divisibility, the GPU's instructions, the engine's own
checks. Pure.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from chutes.hardware.terms import Asked
from chutes.hardware.versions import EngineBehaviour
from chutes.hardware.weights import Layout, stages_of
from chutes.model.facts import ModelFacts

# Compute capability at which a format runs on its own instructions, and from which it runs at all, its
# weights unpacked in the kernel (Marlin). vLLM model_executor/layers/quantization/*.py, get_min_capability;
# native FP8 is Ada and Hopper, NVFP4 and MXFP4 arithmetic is Blackwell.
_NATIVE = {"fp8": (8, 9), "nvfp4": (10, 0), "mxfp4": (10, 0)}
_LEAST = {
    "fp8": (7, 5),
    "nvfp4": (7, 5),
    "mxfp4": (8, 0),
    "awq": (7, 5),
    "gptq": (6, 0),
    "int4": (7, 5),
    "int8": (7, 5),
    "bitsandbytes": (7, 0),
}


class Violations(BaseModel):
    """Why a layout cannot be, and what it would cost if it can."""

    model_config = ConfigDict(frozen=True)

    problems: list[str] = []
    notes: list[str] = []
    """E.g. a format that the GPU has no instructions for: it runs, emulated."""


def violations(
    facts: ModelFacts,
    layout: Layout,
    capability: tuple[int, int],
    behaviour: EngineBehaviour,
    setting: Asked | None = None,
) -> Violations:
    """What divisibility, compute capability and the engine's own checks forbid; with `problems` none starts.

    Args:
        capability: of the GPUs; (0, 0) leaves capability unchecked.
    """
    setting = setting or Asked()
    problems = [*_heads(facts, layout.tensor_parallel), *_widths(facts, layout), *_depth(facts, layout)]
    problems += [*_blocks(facts, layout), *_batch(facts, setting, behaviour)]
    notes: list[str] = []
    if capability != (0, 0):
        _capability(facts, capability, behaviour.engine, problems, notes)
        if behaviour.engine == "vllm":
            _cache_kernels(facts, capability, behaviour, setting, problems, notes)
    return Violations(problems=problems, notes=notes)


def _heads(facts: ModelFacts, tp: int) -> list[str]:
    """vLLM config/model.py `verify_with_parallel_config`; models' own asserts on key-value heads."""
    problems: list[str] = []
    if facts.attention_heads and facts.attention_heads % tp:
        problems.append(
            f"{facts.attention_heads} attention heads cannot be split over tensor parallel size {tp}"
        )
    kept = [layer for layer in facts.layers_attention if layer.kind in ("full", "sliding", "chunked")]
    for heads in sorted({layer.kv_heads for layer in kept}):
        if heads % tp and tp % heads:
            problems.append(
                f"{heads} key-value heads can be neither split nor copied over tensor parallel size {tp}"
            )
    # mamba_mixer2.py and mamba_utils.py: states are split by heads, not by elements.
    linear = {(one.key_heads, one.value_heads) for one in facts.layers_attention if one.kind == "linear"}
    for heads in sorted({heads for pair in linear for heads in pair if heads % tp}):
        problems.append(f"{heads} heads of linear attention cannot be split over tensor parallel size {tp}")
    return problems


def _widths(facts: ModelFacts, layout: Layout) -> list[str]:
    """linear.py `divide(output_size, tp_size)`; fused_moe/config.py asserts the same of experts."""
    tp = layout.tensor_parallel
    problems: list[str] = []
    dense = {facts.intermediate_size or 0}
    if facts.experts is not None:
        some_dense = 0 < facts.experts.layers < (facts.layers or 0)
        dense = {facts.experts.shared} | (dense if some_dense else set())
        if facts.experts.intermediate % tp and not layout.expert_parallel:
            problems.append(
                f"experts of {facts.experts.intermediate} cannot be cut over tensor parallel size {tp}: "
                "take expert parallelism"
            )
    for width in sorted(width for width in dense if width % tp):
        problems.append(f"feed-forward layers of {width} cannot be cut over tensor parallel size {tp}")
    return problems


def _depth(facts: ModelFacts, layout: Layout) -> list[str]:
    pp = layout.pipeline_parallel
    if facts.layers and pp > facts.layers:
        return [f"{facts.layers} layers cannot make {pp} pipeline stages"]
    places = {layer.place for layer in facts.layers_attention}
    for number, stage in enumerate(stages_of(facts, pp), 1):
        if places and places.isdisjoint(stage):
            # vLLM kv_cache_utils.py `get_kv_cache_config_from_groups` divides by the bytes of its block.
            return [f"stage {number} of a pipeline of {pp} would hold no layer with a cache to size"]
    return []


def _batch(facts: ModelFacts, setting: Asked, behaviour: EngineBehaviour) -> list[str]:
    """vLLM config/scheduler.py `verify_max_model_len`: what is asked for must not contradict itself."""
    tokens, seqs = setting.max_num_batched_tokens, setting.max_num_seqs
    if behaviour.engine != "vllm" or tokens is None:
        return []
    if seqs is not None and tokens < seqs:
        return [f"--max-num-batched-tokens {tokens} must not be below --max-num-seqs {seqs}"]
    length = getattr(setting, "max_model_len", None) or facts.max_model_len
    if facts.attention == "encoder" and length and tokens < length:
        return [
            f"--max-num-batched-tokens {tokens} is below the {length:,} tokens of a prompt, which an encoder "
            "takes whole"
        ]
    return []


def _blocks(facts: ModelFacts, layout: Layout) -> list[str]:
    """A rank's slice of a quantised matrix must hold whole blocks; vLLM layers/quantization/fp8.py."""
    found = facts.quantization
    tp = layout.tensor_parallel
    if found is None or tp == 1:
        return []
    if found.block:
        size, named = found.block[0], f"FP8 blocks of {found.block[0]}"
    elif found.group and found.method in ("awq", "gptq", "int4", "int8", "nvfp4"):
        size, named = found.group, f"{found.method} groups of {found.group}"
    else:
        return []
    problems: list[str] = []
    if facts.experts and not layout.expert_parallel and (facts.experts.intermediate / tp) % size:
        problems.append(
            f"experts of {facts.experts.intermediate} over tensor parallel size {tp} are not whole {named}: "
            f"take expert parallelism{_smaller(facts.experts.intermediate, tp, size)}"
        )
    widths = {facts.experts.shared} if facts.experts else {facts.intermediate_size or 0}
    for width in sorted(widths - {0}):
        if found.covers != "experts" and (width / tp) % size:
            problems.append(
                f"feed-forward layers of {width} over tensor parallel size {tp} are not whole {named}"
                f"{_smaller(width, tp, size)}"
            )
    return problems


def _smaller(width: int, tp: int, size: int) -> str:
    fitting = [n for n in range(tp - 1, 0, -1) if not (width / n) % size and not (n & (n - 1))]
    return f" or tensor parallel size {fitting[0]}" if fitting else ""


def _capability(
    facts: ModelFacts, capability: tuple[int, int], engine: str, problems: list[str], notes: list[str]
) -> None:
    has = f"{capability[0]}.{capability[1]}"
    method = facts.quantization.method if facts.quantization else ""
    least, native = _LEAST.get(method), _NATIVE.get(method)
    if least and capability < least:
        problems.append(f"{method} weights need compute capability {least[0]}.{least[1]}, the GPU has {has}")
    elif native and capability < native:
        if engine == "sglang" and method == "fp8":
            notes.append(
                f"fp8 is native from compute capability 8.9, the GPU has {has}: SGLang may widen the weights "
                "to 16 bits, which doubles them"
            )
        else:
            notes.append(
                f"{method} is emulated: weights stay small and are unpacked to 16 bits as they are used "
                f"(the GPU's capability is {has}); slower, not less exact"
            )
    if facts.dtype == "bfloat16" and capability < (8, 0):
        notes.append(f"bfloat16 needs compute capability 8.0, the GPU has {has}: the engine takes float16")


def _cache_kernels(
    facts: ModelFacts,
    capability: tuple[int, int],
    behaviour: EngineBehaviour,
    setting: Asked,
    problems: list[str],
    notes: list[str],
) -> None:
    """Whether any attention kernel takes the cache; `supports_compute_capability` of v1/attention/backends.

    fp8: triton_attn.py and mla/triton_mla.py refuse it below 8.9, flashinfer.py takes it from 8.0 (from 7.5
    before 0.24, which is not offered here), flash_attn.py on 9.x; nothing else has MLA in 8 bits below 8.9.
    """
    has = f"{capability[0]}.{capability[1]}"
    kept = facts.layers_attention
    if any(layer.sparse for layer in kept) and capability[0] not in behaviour.sparse_mla:
        known = ", ".join(f"{major}.x" for major in sorted(behaviour.sparse_mla)) or "nothing"
        problems.append(
            f"its sparse attention has kernels for compute capability {known} in {behaviour.engine} "
            f"{behaviour.version}, the GPU has {has}"
        )
    small = behaviour.cache_dtype(facts, setting.kv_cache_dtype, capability) == "fp8"
    if not small or not any(layer.kind != "linear" for layer in kept) or capability >= (8, 9):
        return
    least = (8, 9) if any(layer.kind == "mla" for layer in kept) else (8, 0)
    if capability < least:
        problems.append(f"an fp8 cache needs compute capability {least[0]}.{least[1]}, the GPU has {has}")
    else:
        notes.append(
            f"an fp8 cache on compute capability {has} needs the engine's FlashInfer: no other kernel has it"
        )
