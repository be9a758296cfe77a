"""What forbids a layout before any byte is counted: divisibility and the GPU's own instructions. Pure."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from chutes.hardware.weights import Layout
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


def violations(facts: ModelFacts, layout: Layout, capability: tuple[int, int], engine: str) -> Violations:
    """What divisibility and compute capability forbid; a layout with `problems` cannot start.

    Args:
        capability: of the GPUs; (0, 0) leaves capability unchecked.
    """
    problems = [*_heads(facts, layout.tensor_parallel), *_depth(facts, layout), *_blocks(facts, layout)]
    notes: list[str] = []
    if capability != (0, 0):
        _capability(facts, capability, engine, problems, notes)
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
    linear = [layer for layer in facts.layers_attention if layer.kind == "linear"]
    if any(layer.state_elements % tp or layer.conv_elements % tp for layer in linear):
        problems.append(f"the heads of its linear attention cannot be split over tensor parallel size {tp}")
    return problems


def _depth(facts: ModelFacts, layout: Layout) -> list[str]:
    if facts.layers and layout.pipeline_parallel > facts.layers:
        return [f"{facts.layers} layers cannot make {layout.pipeline_parallel} pipeline stages"]
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
