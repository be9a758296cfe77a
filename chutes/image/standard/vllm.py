"""The image of vLLM chutes."""

# Published name: chutes/vllm:nightly-2025111700, in a registry of that platform.
# This is vLLM's own release.
VLLM = "vllm/vllm-openai:v0.32.0"
