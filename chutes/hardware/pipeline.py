"""Which device of this machine a pipeline that draws is given, and why. Pure.

Its weights are counted exactly, from the headers of their files. What it needs beside them while it draws
is an estimate from the size of its largest tensors, not a measurement; the reasons say so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from chutes.chute.node_selector import NodeSelector
from chutes.hardware import gpu_names
from chutes.hardware.devices import Gpu, Machine
from chutes.hardware.plan import Plan
from chutes.hardware.profiles import Profiles
from chutes.hardware.selected import refusal
from chutes.hardware.terms import gib
from chutes.model.pipelines import PipelineFacts

GIB = 1 << 30

ENGINE = "diffusers"

CUDA_BYTES = GIB  # CUDA's context and libraries; half a GiB to one, by generation
CPU_BYTES = GIB  # torch and diffusers, imported: 0.9 GiB resident

PIXELS = 1024 * 1024  # the published default

# Decoding a picture is the peak: its last layers hold some four tensors of 256 channels a pixel (two blocks
# of 128 joined, of Stable Diffusion's autoencoder) in float32, to which pipelines upcast it.
DECODE_BYTES = PIXELS * 256 * 4 * 4
# A picture in the denoiser, twice for guidance: activations of 128 × 128 latents through the widest block.
DENOISE_BYTES = GIB // 2


def plan(
    facts: PipelineFacts | None,
    selector: NodeSelector,
    machine: Machine,
    profiles: Profiles,
    *,
    version: str,
    options: Mapping[str, object],
    taken: Collection[int] = (),
) -> Plan:
    """Choose a device of `machine` for one instance; `problem` is set when there is none.

    Args:
        facts: None where the parts' sizes could not be read.
        version: of the engine's environment.
        options: of the chute: `EngineSpec.options`.
        taken: GPUs of other chutes, used only if the others will not do.

    Raises:
        InvalidSpec: the selector names GPU types that do not exist.
    """
    gpu_names.check_ids(selector.include or [], "include", profiles)
    gpu_names.check_ids(selector.exclude or [], "exclude", profiles)
    asked = options.get("batch")
    batch = asked if isinstance(asked, int) else 1
    drawing = DECODE_BYTES + batch * DENOISE_BYTES
    reasons: list[str] = []
    if facts is None:
        reasons.append("the sizes of its parts could not be read, so nothing was checked against them")
    else:
        of = f" of a {facts.pipeline}" if facts.pipeline else ""
        reasons.append(f"{_count(facts.parameters)} parameters{of}: {_parts(facts)}")
    if not machine.gpus:
        return _on_cpu(facts, machine, selector, version, drawing, batch, reasons)
    free = [gpu for gpu in machine.gpus if gpu.index not in taken]
    first = _on_gpu(facts, free, selector, profiles, version, machine, drawing, batch, reasons)
    if first.fits or len(free) == len(machine.gpus):
        return first
    return _on_gpu(facts, list(machine.gpus), selector, profiles, version, machine, drawing, batch, reasons)


def _parts(facts: PipelineFacts) -> str:
    sizes = sorted(facts.parts.items(), key=lambda item: -item[1].parameters)
    return ", ".join(f"{name} {_count(part.parameters)}" for name, part in sizes)


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e8 else f"{parameters / 1e6:.2f} M"


def _on_cpu(
    facts: PipelineFacts | None,
    machine: Machine,
    selector: NodeSelector,
    version: str,
    drawing: int,
    batch: int,
    reasons: list[str],
) -> Plan:
    why = f" ({machine.gpu_problem})" if machine.gpu_problem else ""
    reasons = [*reasons, f"no GPU here{why}: {ENGINE} draws on {machine.cpus} CPU cores in float32"]
    result = Plan(accelerator="cpu", engine=ENGINE, engine_version=version)
    if facts is None:
        if selector.gpu_count > 1 or selector.min_vram_gb_per_gpu > 24:
            result.problem = "There is no GPU here, and the sizes of the model's parts could not be read."
            result.fix = "Deploy it on a machine with GPUs."
        return result.model_copy(update={"reasons": reasons})
    weights = result.weights_bytes = 4 * facts.parameters
    # What one picture takes less the more slowly it is drawn: on a CPU batches are no faster, and may wait.
    needed = weights + CPU_BYTES + DECODE_BYTES // 4
    reasons.append(
        f"weights {gib(weights)} + engine {gib(CPU_BYTES)} + {gib(needed - weights - CPU_BYTES)} while it "
        f"draws (an estimate, for 512 × 512) of {gib(machine.memory_available)} free memory"
    )
    if needed > machine.memory_available:
        short = needed - machine.memory_available
        result.problem = f"{gib(needed)} of memory are needed and {gib(short)} are missing."
        result.fix = "Take a smaller model, free memory, or deploy on a machine with a GPU."
    return result.model_copy(update={"reasons": reasons})


def _on_gpu(
    facts: PipelineFacts | None,
    gpus: list[Gpu],
    selector: NodeSelector,
    profiles: Profiles,
    version: str,
    machine: Machine,
    drawing: int,
    batch: int,
    reasons: list[str],
) -> Plan:
    reasons = list(reasons)
    result = Plan(accelerator="cuda", engine=ENGINE, engine_version=version)
    refused = {gpu.index: refusal(gpu, selector, profiles) for gpu in gpus}
    suitable = [gpu for gpu in gpus if not refused[gpu.index]]
    if not suitable:
        said = " ".join(f"GPU {gpu.index} ({gpu.name}): {refused[gpu.index]}." for gpu in gpus)
        result.problem = f"No GPU here will do. {said}".strip()
        result.fix = "Lower min_vram_gb_per_gpu in its NodeSelector, or deploy on another machine."
        return result.model_copy(update={"reasons": reasons})
    if selector.gpu_count > 1:
        reasons.append(f"gpu_count={selector.gpu_count}, and a pipeline is loaded on one GPU")
    # The emptiest, so that a second chute does not land on the first one's GPU.
    gpu = max(suitable, key=lambda one: (one.memory_free, -one.index))
    result.gpus = [gpu.index]
    reasons.append(f"{gpu.name} (GPU {gpu.index}), {gib(gpu.memory_total)}")
    if facts is None:
        return result.model_copy(update={"reasons": reasons})
    weights = result.weights_bytes = 2 * facts.parameters
    needed = weights + drawing + CUDA_BYTES
    reasons.append(
        f"weights {gib(weights)} in half precision + CUDA {gib(CUDA_BYTES)} + {gib(drawing)} while it draws "
        f"(an estimate, not measured, for {batch} × 1024 × 1024) = {gib(needed)}"
    )
    if needed <= gpu.memory_total:
        return result.model_copy(update={"reasons": reasons})
    largest = 2 * max(part.parameters for part in facts.parts.values())
    one_by_one = largest + drawing + CUDA_BYTES
    if len(facts.parts) > 1 and one_by_one <= gpu.memory_total and weights <= machine.memory_available:
        result.engine_args = ["--offload", "model"]
        reasons.append(
            f"that does not fit: each part is on the GPU only while it works ({gib(one_by_one)}), and waits "
            "in main memory, which costs time for each picture"
        )
        return result.model_copy(update={"reasons": reasons})
    result.problem = (
        f"{gib(needed)} are needed and GPU {gpu.index} has {gib(gpu.memory_total)}: "
        f"{gib(needed - gpu.memory_total)} too little."
    )
    result.fix = "Lower batch_size, take a smaller model, or a GPU with more memory."
    return result.model_copy(update={"reasons": reasons})
