"""Any text-to-image pipeline that diffusers runs, behind OpenAI's images API and the published `/generate`.

    chutes deploy templates.diffusion_chute:chute
    MODEL=black-forest-labs/FLUX.1-schnell STEPS=4 GUIDANCE=1 chutes deploy templates.diffusion_chute:chute

Or copy this file and write the values into it.
"""

from os import environ as env
from pathlib import Path

from chutes.chute import NodeSelector
from chutes.chute.template import build_diffusion_chute
from chutes.hardware.devices import has_gpu

# SDXL where a GPU can hold it; else a toy of 1.5 MB that comes with chutes and draws handwritten digits
# ("the digit seven", 128 × 128) within a second on a laptop.
digits = Path(__file__).parent / "digits"
model = env.get("MODEL") or (
    "stabilityai/stable-diffusion-xl-base-1.0" if has_gpu(min_gb=15) else str(digits)
)

hardware = {"GPU_COUNT": "gpu_count", "MIN_VRAM_GB": "min_vram_gb_per_gpu"}
defaults = {"STEPS": "num_inference_steps", "GUIDANCE": "guidance_scale"}

chute = build_diffusion_chute(
    username="chutes",
    # What callers send as "model".
    name=env.get("NAME") or (model if not model.startswith(("/", "http")) else "digits"),
    # A hub id, a directory, a .safetensors file, or a page of civitai.com.
    model_name_or_url=model,
    # The commit to serve. Left out, the platform records the one it finds and stays with it.
    revision=env.get("REVISION") or None,
    # Requests that one instance takes at once; those of one size are drawn together.
    concurrency=int(env.get("CONCURRENCY") or 3),
    # For the pipeline's from_pretrained, for instance {"torch_dtype": "bfloat16", "variant": "fp16"}.
    pipeline_args={},
    # "keep" uses the pipeline's own checker, if it has one, and refuses what that flags; "off" loads none.
    safety_checker="off" if env.get("SAFETY_CHECKER") == "off" else "keep",
    # Where a request says nothing of it. Distilled models want few steps.
    defaults={key: float(env[name]) for name, key in defaults.items() if env.get(name)},
    # What one instance needs. What is left out is planned: `chutes deploy --dry-run` prints how.
    node_selector=NodeSelector(**{key: int(env[name]) for name, key in hardware.items() if env.get(name)}),
    # How far it may grow under load, and when it stops for want of it (seconds without a request).
    max_instances=int(env.get("MAX_INSTANCES") or 1),
    shutdown_after_seconds=int(env.get("SHUTDOWN_AFTER_SECONDS") or 300),
)
