"""A language model on vLLM, behind OpenAI's chat and completions API."""

from chutes.chute import NodeSelector
from chutes.chute.template.vllm import build_vllm_chute

chute = build_vllm_chute(
    username="USERNAME",
    # The name on the Hugging Face hub, or a directory. It is also the chute's name, and what callers send as
    # "model". This one answers on a laptop; on a GPU of 24 GB try "Qwen/Qwen3-8B".
    model_name="HuggingFaceTB/SmolLM2-135M-Instruct",
    # The commit to serve. Left out, the platform records the one that it finds and stays with it.
    # revision="…40 hex digits…",
    # Requests that one instance takes at once.
    concurrency=32,
    # Options for `vllm serve`, as one string.
    # engine_args="--max-model-len 8192 --enable-prefix-caching",
    # What one instance needs. Left open, it is planned: `chutes plan MODEL` tells what it needs anywhere.
    node_selector=NodeSelector(
        # gpu_count=1,
        # min_vram_gb_per_gpu=24,
        # include=["h100", "a100"],
    ),
    # When its last instance stops for want of requests, in seconds.
    shutdown_after_seconds=300,
)
