"""An embedding model on vLLM, behind OpenAI's `POST /v1/embeddings`."""

from chutes.chute import NodeSelector
from chutes.chute.template.embedding import build_embedding_chute

chute = build_embedding_chute(
    username="USERNAME",
    # The name on the Hugging Face hub, or a directory. It is also the chute's name, and what callers send as
    # "model". This one answers on a laptop; for a hundred languages try "Qwen/Qwen3-Embedding-0.6B".
    model_name="sentence-transformers/all-MiniLM-L6-v2",
    # The commit to serve. Left out, the platform records the one that it finds and stays with it.
    # revision="…40 hex digits…",
    # Requests that one instance takes at once; each may hold many texts.
    concurrency=32,
    # How one vector is made of a text: "CLS", "LAST", "MEAN"; "auto": as the model's own files say.
    pooling_type="auto",
    # Longer texts than the model reads are cut into pieces whose vectors are averaged. False: refused.
    enable_chunked_processing=True,
    # What one instance needs. Left open, it is planned.
    node_selector=NodeSelector(
        # min_vram_gb_per_gpu=16,
    ),
    # When its last instance stops for want of requests, in seconds.
    shutdown_after_seconds=300,
)
