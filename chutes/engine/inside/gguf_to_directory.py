"""Turn one GGUF file into a Hugging Face directory that a model server can load.

Runs inside an engine's environment (it needs transformers, gguf and torch) and never imports chutes:

    python gguf_to_directory.py GGUF_FILE OUTPUT_DIRECTORY [DTYPE]

The quantised tensors are expanded to DTYPE (a torch name; default bfloat16). On stdout a line "step: …"
says where it is; on failure it exits with 1 and the reason is the last line of stderr.
"""

import sys
from pathlib import Path

import torchvision_on_cpu


def convert(gguf: Path, output: Path, dtype: str) -> None:
    """Write config.json, model*.safetensors and the tokenizer's files into `output`, which must be empty."""
    print("step: importing transformers", flush=True)
    import torch

    torchvision_on_cpu.prepare()
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    print("step: reading the tokenizer", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    print("step: expanding the weights", flush=True)
    # Without dequantize the model keeps its packed tensors, and save_pretrained refuses to write those.
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=getattr(torch, dtype), quantization_config=GgufConfig(dequantize=True)
    )
    print("step: writing the directory", flush=True)
    tokenizer.save_pretrained(output)
    model.save_pretrained(output)


def main() -> int:
    if len(sys.argv) not in (3, 4):
        print(__doc__, file=sys.stderr)
        return 2
    gguf, output = Path(sys.argv[1]), Path(sys.argv[2])
    dtype = sys.argv[3] if len(sys.argv) == 4 else "bfloat16"
    try:
        output.mkdir(parents=True, exist_ok=True)
        convert(gguf, output, dtype)
    except Exception as error:  # whatever it was, the platform shows the last line to a person
        print(f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
