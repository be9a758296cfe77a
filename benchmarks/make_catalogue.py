"""Writes chutes/model/catalogue.json: the models that can be planned without a network.

python -m benchmarks.make_catalogue --models MODELS.json --configs DIR [--output FILE]

MODELS.json: for each model id what is known of its checkpoint,

    config                          the fields of config.json that decide memory; none: several models in one
    total_params                    elements stored
    text_params                     those of the language model, where the rest is a vision or audio part
    serving_params_loaded           elements that an engine loads, where it leaves some out
    checkpoint_bytes_computed       bytes of the tensors, by arithmetic on config.json
    checkpoint_bytes_published      bytes of the files as somebody published them, null where nobody did
    serving_weight_bytes_computed   bytes that an engine loads
    confidence                      `high` where no field had to be assumed

DIR: config.json files as ORG--NAME_config.json, for the fields that MODELS.json lacks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

# A list of fields from elsewhere may leave model_type out; an architecture has one.
MODEL_TYPES = {
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Gemma3ForCausalLM": "gemma3_text",
    # Planned as its language model; that it sees is in `vision`.
    "Gemma3ForConditionalGeneration": "gemma3_text",
    "Phi3ForCausalLM": "phi3",
    "BertModel": "bert",
}

# Fields that decide memory, taken from config.json itself where MODELS.json does not even name the
# architecture: its list was then cut short.
FROM_CONFIG = ("architectures", "attention_chunk_size", "intermediate_size_mlp")

# What neither says. An embedding model has no head: as if it were tied.
ADDED: dict[str, dict[str, Any]] = {"Qwen/Qwen3-Embedding-8B": {"tie_word_embeddings": True}}

# What pipelines of several models are stored in.
PIPELINE_DTYPES = {"stabilityai/stable-diffusion-xl-base-1.0": "float16"}
PIPELINE_DTYPE = "bfloat16"

SIXTEEN_BITS = 2  # bytes; every model with a vision part in the catalogue is stored so


def config_of(name: str, given: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The fields of config.json that decide memory."""
    found = {field: value for field, value in given.items() if value is not None}
    if found.get("attention_bias") == "qkv":  # as Qwen2 has it: of the three, not of the output
        found["attention_bias"] = True
    own = directory / f"{name.replace('/', '--')}_config.json"
    if "architectures" not in found and own.exists():
        whole = json.loads(own.read_text())
        whole |= whole.get("text_config") or {}
        for field in FROM_CONFIG:
            if whole.get(field) is not None:
                found.setdefault(field, whole[field])
    architecture = (found.get("architectures") or [""])[0]
    if "model_type" not in found and architecture in MODEL_TYPES:
        found["model_type"] = MODEL_TYPES[architecture]
    return found | ADDED.get(name, {})


def entry_of(name: str, model: dict[str, Any], directory: Path) -> dict[str, Any]:
    """One entry of the catalogue."""
    entry: dict[str, Any] = {}
    if model.get("config"):
        entry["config"] = config_of(name, model["config"], directory)
    total = model["total_params"]
    entry["parameters"] = total
    entry["loaded_parameters"] = model.get("serving_params_loaded") or total
    weights = model["checkpoint_bytes_computed"]
    if "text_params" in model:  # the arithmetic covers the language model only
        entry["vision"] = True
        weights = total * SIXTEEN_BITS
    entry["weights_bytes"] = weights
    entry["loaded_bytes"] = model.get("serving_weight_bytes_computed") or weights
    if not model.get("config"):
        entry["dtype"] = PIPELINE_DTYPES.get(name, PIPELINE_DTYPE)
    entry["exact"] = model["confidence"] == "high"
    entry["checked"] = model.get("checkpoint_bytes_published") is not None
    return entry


def written(entries: dict[str, dict[str, Any]]) -> str:
    """One model a line, so that a change of one shows as one."""
    lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--configs", type=Path, required=True)
    default = Path(__file__).parents[1] / "chutes" / "model" / "catalogue.json"
    parser.add_argument("--output", type=Path, default=default)
    options = parser.parse_args()
    models = json.loads(options.models.read_text())
    entries = {name: entry_of(name, model, options.configs) for name, model in models.items()}
    options.output.write_text(written(entries))
    print(f"{len(entries)} models written to {options.output}")


if __name__ == "__main__":
    main()
