"""How releases of an engine differ in what they do with memory: every prediction is keyed by these.

[src] is read in vLLM's source, [log] in published start-up logs, [fit] fitted to published measurements
(benchmarks/data/memory-calibration.csv, all of vLLM 0.11).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from chutes.exception import InvalidSpec

GIB = 1 << 30

NEWEST = {"vllm": "0.32.0", "sglang": "0.5.0"}
"""What an empty version means: the newest release that these rules were read in."""


@dataclass(frozen=True)
class EngineBehaviour:
    """What one release of one engine does."""

    engine: str
    version: str
    default_utilization: float
    cuda_graphs_subtracted: bool
    """Whether the CUDA graphs' memory comes out of the budget before the KV cache is sized. Where not, they
    live in what the budget leaves over, and a high utilization runs out of memory after start-up."""
    in_flight_factor: int
    """Scheduled batches whose tokens sliding and chunked layers hold at once, on a GPU without pipeline."""
    token_count: Literal["blocks", "concurrency"]
    """How "KV cache size: N tokens" is made: blocks // groups x block size, or concurrency x length."""
    sampler_bytes: float
    """Bytes of the sampler's dummy run for each of (sequences x vocabulary)."""
    cuda_graph_bytes: int
    """Expected of the CUDA graphs of one GPU."""
    cuda_graph_most: int
    """The most that was seen of them."""
    null_block: bool = True
    """Whether the block that the pool holds back is counted when a start is refused."""
    note: str = ""

    def default_batch(self, gpu_bytes: int, gpu_name: str = "") -> tuple[int, int]:
        """(max_num_batched_tokens, max_num_seqs) of the API server when nothing is asked for.

        vLLM 0.32 engine/arg_utils.py, `get_batch_defaults` [src]. An A800 is not an A100 there. When the
        class of 160 GiB came was not read: it is taken for every version.
        """
        if gpu_bytes >= 160 * GIB:
            return 16_384, 1024
        if gpu_bytes >= 70 * GIB and "a100" not in gpu_name.lower() and "gb10" not in gpu_name.lower():
            return 8192, 1024
        return 2048, 256

    def in_flight_tokens(self, max_num_batched_tokens: int, pipeline_parallel: int = 1) -> int:
        """Tokens that are scheduled and not settled; vLLM 0.32 config/vllm.py `max_in_flight_tokens` [src].

        With a pipeline the V2 runner keeps one batch a stage and one more.
        """
        batches = self.in_flight_factor if pipeline_parallel == 1 else pipeline_parallel + 1
        return batches * max_num_batched_tokens


def parse(version: str) -> tuple[int, int]:
    """(major, minor) of `0.11.1rc2`.

    Raises:
        InvalidSpec: that is no version.
    """
    found = re.match(r"v?(\d+)\.(\d+)", version.strip())
    if not found:
        raise InvalidSpec(
            f"{version!r} is not a version of an engine.", "Write it as its release is called: 0.32.0"
        )
    return int(found[1]), int(found[2])


_OLD = EngineBehaviour(
    engine="vllm",
    version="",
    default_utilization=0.90,  # [src]
    cuda_graphs_subtracted=False,  # [src] VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS came on with 0.21
    in_flight_factor=1,  # 0.23 needs exactly what a factor of 1 gives for gemma-4-31B [log]
    token_count="blocks",  # [src] until vllm#51041
    # [fit] over six models, 0.02 GiB. Top-k and top-p sort in float32 with 64-bit indices, softmax, sum.
    sampler_bytes=38.35,
    # -0.88 … +1.03 GiB over eight measurements of 0.11, median -0.4 [log]: capturing frees about as much
    # as it takes.
    cuda_graph_bytes=0,
    cuda_graph_most=int(1.03 * GIB),
    null_block=False,
)


def behaviour(engine: str, version: str) -> EngineBehaviour:
    """What is known of `version` (`0.32.0`, `0.11.1rc2`; empty: the newest known) of `engine`.

    Raises:
        InvalidSpec: an engine that is not known here, or a version that is no version.
    """
    if engine not in NEWEST:
        raise InvalidSpec(
            f"The memory use of engine {engine!r} is not known.", f"Known are: {', '.join(NEWEST)}."
        )
    version = version or NEWEST[engine]
    number = parse(version)
    if engine == "sglang":
        return _sglang(version)
    rules = replace(_OLD, version=version)
    if number >= (0, 21):
        rules = replace(
            rules,
            default_utilization=0.92,  # [src]
            cuda_graphs_subtracted=True,  # [src]
            token_count="concurrency",  # [src]
            null_block=True,  # [src] read in 0.32
            # 0.5 … 1.9 GiB in logs of 0.2x [log]: their geometric middle.
            cuda_graph_bytes=GIB,
            cuda_graph_most=int(1.9 * GIB),
        )
    if number >= (0, 24):
        # Two batches overlap under asynchronous scheduling [src 0.32]; 0.23 counts one [log]. What lies
        # between was not read: the larger is taken.
        rules = replace(rules, in_flight_factor=2)
    if number >= (0, 28):
        # The V2 runner's dummy run skips top-k and top-p: logits in 16 bits and a float32 copy of them
        # (worker/gpu/model_runner.py, sample/sampler.py in 0.32 [src]), with the gather across ranks. On
        # 0.28 the whole transient of Qwen2.5-7B on an L4 was 14 bytes for each of them [log].
        rules = replace(rules, sampler_bytes=14.0)
    return rules


def _sglang(version: str) -> EngineBehaviour:
    """SGLang gives weights and KV cache one static share and leaves the rest to everything else.

    Only its rule is known here, not measurements: static = total x mem_fraction_static, and what the weights
    leave of it is the KV cache (server_args.py). The default depends on GPU and tp; 0.88 is its usual value.
    """
    return EngineBehaviour(
        engine="sglang",
        version=version,
        default_utilization=0.88,
        cuda_graphs_subtracted=False,
        in_flight_factor=1,
        token_count="blocks",
        sampler_bytes=0.0,
        cuda_graph_bytes=GIB,
        cuda_graph_most=int(1.9 * GIB),
        null_block=False,
        note="SGLang's activations and graphs live in what its static share leaves; no measurements "
        "of it stand behind this estimate",
    )
