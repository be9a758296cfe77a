"""Any model that SGLang runs, as an OpenAI-compatible endpoint.

    chutes deploy templates.sglang_chute:chute
    MODEL=Qwen/Qwen3-32B GPU_COUNT=2 chutes deploy templates.sglang_chute:chute

Or copy this file and write the values into it.
"""

from os import environ as env

from chutes.chute import NodeSelector
from chutes.chute.template import build_sglang_chute
from chutes.hardware.devices import has_gpu

# A model that makes use of a GPU with 24 GB, or one that answers within seconds on a laptop.
default_model = "Qwen/Qwen3-8B" if has_gpu(min_gb=24) else "HuggingFaceTB/SmolLM2-135M-Instruct"

hardware = {"GPU_COUNT": "gpu_count", "MIN_VRAM_GB": "min_vram_gb_per_gpu"}

chute = build_sglang_chute(
    username="chutes",
    # The name on the Hugging Face hub, or a path. Callers send it as "model".
    model_name=env.get("MODEL") or default_model,
    # The commit to serve. Left out, the platform records the one it finds and stays with it.
    revision=env.get("REVISION") or None,
    # Requests that one instance takes at once.
    concurrency=int(env.get("CONCURRENCY") or 32),
    # Options for SGLang, for instance "--context-length 8192 --schedule-policy lpm".
    engine_args=env.get("ENGINE_ARGS") or None,
    # What one instance needs. What is left out is planned: `chutes deploy --dry-run` prints how the model was
    # fitted to this machine, `chutes plan MODEL` what it needs anywhere.
    node_selector=NodeSelector(**{key: int(env[name]) for name, key in hardware.items() if env.get(name)}),
    # How far it may grow under load, and when it stops for want of it (seconds without a request).
    max_instances=int(env.get("MAX_INSTANCES") or 1),
    shutdown_after_seconds=int(env.get("SHUTDOWN_AFTER_SECONDS") or 300),
)
