"""Vectors of texts by the recipe of a sentence-transformers model with mean pooling: the reference of a test.

    python sentence_vectors.py MODEL_DIRECTORY < JSON list of texts

Prints {"vectors": [[float, ...], ...], "tokens": [int, ...]}. It is what all-MiniLM-L6-v2's model card does
with transformers where sentence-transformers is not installed: tokens cut to `max_seq_length`, the last
hidden states averaged over the tokens that are not padding, the mean made as long as 1. Runs in an engine's
environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModel, AutoTokenizer  # pyright: ignore[reportMissingImports]

    directory = Path(sys.argv[1])
    texts = json.load(sys.stdin)
    longest = json.loads((directory / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).float()
    means = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    vectors = torch.nn.functional.normalize(means, dim=1)
    print(json.dumps({"vectors": vectors.tolist(), "tokens": inputs["attention_mask"].sum(1).tolist()}))


if __name__ == "__main__":
    main()
