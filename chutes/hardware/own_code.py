"""Devices for one instance of an author's own code, of which no arithmetic knows what it needs. Pure."""

from __future__ import annotations

import platform
from collections.abc import Collection

from chutes.chute.node_selector import NodeSelector
from chutes.hardware import gpu_names
from chutes.hardware.devices import Machine
from chutes.hardware.plan import Plan
from chutes.hardware.profiles import Profiles
from chutes.hardware.selected import refusal


def plan(selector: NodeSelector, machine: Machine, profiles: Profiles, taken: Collection[int] = ()) -> Plan:
    """What the NodeSelector asks for, of this machine; the CPU where there is no GPU at all.

    Args:
        taken: GPUs of other chutes; used only if the others will not do.

    Raises:
        InvalidSpec: the selector names GPU types that do not exist.
    """
    gpu_names.check_ids(selector.include or [], "include", profiles)
    gpu_names.check_ids(selector.exclude or [], "exclude", profiles)
    chosen = Plan(accelerator="cpu", engine="python", engine_version=platform.python_version())
    if not machine.gpus:
        why = f" ({machine.gpu_problem})" if machine.gpu_problem else ""
        chosen.reasons = [f"no GPU here{why}: the chute's code runs on {machine.cpus} CPU cores"]
        return chosen
    chosen.accelerator = "cuda"
    refused = {gpu.index: refusal(gpu, selector, profiles) for gpu in machine.gpus}
    suitable = [gpu for gpu in machine.gpus if not refused[gpu.index]]
    # Others' last, then the emptiest, so that a second chute does not land on the first one's.
    suitable.sort(key=lambda gpu: (gpu.index in taken, -gpu.memory_free, gpu.index))
    count = selector.gpu_count
    if len(suitable) < count:
        said = " ".join(f"GPU {index}: {why}." for index, why in refused.items() if why)
        chosen.problem = (
            f"The chute asks for {count} GPU{'s' * (count > 1)} and {len(suitable)} here will do. {said}"
        ).strip()
        chosen.fix = "Change its NodeSelector, or deploy on another machine."
        return chosen
    given = suitable[:count]
    chosen.gpus = sorted(gpu.index for gpu in given)
    chosen.reasons = [
        f"{count} × {given[0].name} (GPU {', '.join(map(str, chosen.gpus))}), as its NodeSelector asks; "
        "what the code needs is not known, so nothing was checked against it"
    ]
    shared = sorted(set(chosen.gpus) & set(taken))
    if shared:
        chosen.reasons.append(f"GPU {', '.join(map(str, shared))} is another chute's too: no other is free")
    return chosen
