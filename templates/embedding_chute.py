"""Any embedding model that vLLM runs, behind OpenAI's `POST /v1/embeddings`.

    chutes deploy templates.embedding_chute:chute
    MODEL=BAAI/bge-m3 chutes deploy templates.embedding_chute:chute

Or copy this file and write the values into it.
"""

from os import environ as env

from chutes.chute import NodeSelector
from chutes.chute.template import build_embedding_chute
from chutes.hardware.devices import has_gpu

# A model for a hundred languages and long texts, or one that answers within milliseconds on a laptop.
default_model = "Qwen/Qwen3-Embedding-0.6B" if has_gpu(min_gb=8) else "sentence-transformers/all-MiniLM-L6-v2"

hardware = {"GPU_COUNT": "gpu_count", "MIN_VRAM_GB": "min_vram_gb_per_gpu"}

chute = build_embedding_chute(
    username="chutes",
    # The name on the Hugging Face hub, or a path. Callers send it as "model".
    model_name=env.get("MODEL") or default_model,
    # The commit to serve. Left out, the platform records the one it finds and stays with it.
    revision=env.get("REVISION") or None,
    # Requests that one instance takes at once; each may hold many texts.
    concurrency=int(env.get("CONCURRENCY") or 32),
    # How one vector is made of a text: "CLS", "LAST", "MEAN", or as the model's own files say.
    pooling_type=env.get("POOLING_TYPE") or "auto",
    # Longer texts than the model reads are cut into pieces whose vectors are averaged. False: refused.
    enable_chunked_processing=True,
    # Options for vLLM, for instance '--hf-overrides {"is_matryoshka":true}' for shorter vectors when asked.
    engine_args=env.get("ENGINE_ARGS") or None,
    # What one instance needs. What is left out is planned: `chutes deploy --dry-run` prints how the model was
    # fitted to this machine, `chutes plan MODEL` what it needs anywhere.
    node_selector=NodeSelector(**{key: int(env[name]) for name, key in hardware.items() if env.get(name)}),
    # How far it may grow under load, and when it stops for want of it (seconds without a request).
    max_instances=int(env.get("MAX_INSTANCES") or 1),
    shutdown_after_seconds=int(env.get("SHUTDOWN_AFTER_SECONDS") or 300),
)
