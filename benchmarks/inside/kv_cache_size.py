"""Start vLLM with dummy weights for each model directory and print the size of KV cache that it logs.

python kv_cache_size.py < JSON list of {"name", "model", "arguments": {...}}; one JSON object a line comes
back: {"name", "tokens", "blocks", "block_size", "error"}. Imports cost half a minute, so they are made once
and every model gets a fork of them; the engine core runs in that process too.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import traceback

LINE = re.compile(r"KV cache size: ([\d,]+) tokens")


def one(job: dict) -> None:
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    llm = LLM(
        model=job["model"],
        load_format="dummy",
        enforce_eager=True,
        skip_tokenizer_init=True,
        disable_log_stats=True,
        **job["arguments"],
    )
    config = llm.llm_engine.vllm_config
    cache = config.cache_config
    print(
        "RESULT "
        + json.dumps(
            {
                "blocks": cache.num_gpu_blocks,
                "block_size": cache.block_size,
                "batched_tokens": config.scheduler_config.max_num_batched_tokens,
                "mamba_mode": cache.mamba_cache_mode,
                "state_dtype": str(cache.mamba_ssm_cache_dtype),
                "dtype": str(config.model_config.dtype),
            }
        ),
        flush=True,
    )


def forked(job: dict) -> dict:
    with tempfile.TemporaryFile("w+") as log:
        child = os.fork()
        if not child:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                one(job)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(0)
        os.waitpid(child, 0)
        log.seek(0)
        text = log.read()
    size = LINE.search(text)
    answer = {"name": job["name"], "tokens": int(size[1].replace(",", "")) if size else None}
    for line in text.splitlines():
        if line.startswith("RESULT "):
            answer |= json.loads(line.removeprefix("RESULT "))
    if size is None or "blocks" not in answer:
        answer["error"] = "\n".join(text.splitlines()[-12:])
    return answer


def main() -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import vllm  # noqa: F401  # pyright: ignore[reportMissingImports]
    from vllm.engine.arg_utils import EngineArgs  # noqa: F401  # pyright: ignore[reportMissingImports]

    for job in json.load(sys.stdin):
        print(json.dumps(forked(job)), flush=True)


if __name__ == "__main__":
    main()
