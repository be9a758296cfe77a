"""Any model that vLLM runs, as an OpenAI-compatible endpoint.

    chutes deploy templates.vllm_chute:chute
    MODEL=Qwen/Qwen3-32B GPU_COUNT=2 chutes deploy templates.vllm_chute:chute

Or copy this file and write the values into it.
"""

from os import environ as env

from chutes.chute import NodeSelector
from chutes.chute.template import build_vllm_chute
from chutes.hardware.devices import has_gpu

# A model that makes use of a GPU with 24 GB, or one that answers within seconds on a laptop.
large = has_gpu(min_gb=24)
default_model = "Qwen/Qwen3-8B" if large else "HuggingFaceTB/SmolLM2-135M-Instruct"

chute = build_vllm_chute(
    username="chutes",
    # The name on the Hugging Face hub, or a path. Callers send it as "model".
    model_name=env.get("MODEL") or default_model,
    # The commit to serve. Left out, the platform records the one it finds and stays with it.
    revision=env.get("REVISION") or None,
    # Requests that one instance takes at once.
    concurrency=int(env.get("CONCURRENCY") or 32),
    # Options for vLLM, for instance "--max-model-len 8192 --enable-prefix-caching".
    engine_args=env.get("ENGINE_ARGS") or None,
    # What one instance needs. `chutes deploy` prints how a model was fitted to your hardware.
    node_selector=NodeSelector(
        gpu_count=int(env.get("GPU_COUNT") or 1),
        min_vram_gb_per_gpu=int(env.get("MIN_VRAM_GB") or (24 if large else 2)),
    ),
    # How far it may grow under load, and when it stops for want of it (seconds without a request).
    max_instances=int(env.get("MAX_INSTANCES") or 1),
    shutdown_after_seconds=int(env.get("SHUTDOWN_AFTER_SECONDS") or 300),
)
