"""A text-to-image pipeline on diffusers, behind OpenAI's images API and the published `POST /generate`."""

from pathlib import Path

import templates
from chutes.chute import NodeSelector
from chutes.chute.template.diffusion import build_diffusion_chute

# A toy that comes with chutes and draws handwritten digits ("the digit seven") within a second on a laptop.
# With a GPU of 16 GB write a name on the Hugging Face hub here: "stabilityai/stable-diffusion-xl-base-1.0".
MODEL = str(Path(templates.__file__).parent / "digits")

chute = build_diffusion_chute(
    username="USERNAME",
    # What callers send as "model".
    name="digits",
    # A hub id, a directory, a .safetensors file, or a page of civitai.com.
    model_name_or_url=MODEL,
    # The commit to serve. Left out, the platform records the one that it finds and stays with it.
    # revision="…40 hex digits…",
    # Requests that one instance takes at once.
    concurrency=3,
    # For the pipeline's from_pretrained.
    # pipeline_args={"torch_dtype": "bfloat16", "variant": "fp16"},
    # What one instance needs. Left open, it is planned.
    node_selector=NodeSelector(
        # min_vram_gb_per_gpu=24,
    ),
    # When its last instance stops for want of requests, in seconds.
    shutdown_after_seconds=300,
)
