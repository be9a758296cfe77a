"""How releases of an engine differ in what they do with memory: every prediction is keyed by these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EngineBehaviour:
    """What one release of one engine does."""

    engine: str
    version: str
    default_utilization: float
    cuda_graphs_subtracted: bool
    """Whether the CUDA graphs' memory comes out of the budget before the KV cache is sized."""
    in_flight_factor: int
    """Scheduled batches that sliding and chunked layers hold tokens of at once."""
    token_count: Literal["blocks", "concurrency"]
    """How "KV cache size: N tokens" is made: blocks // groups x block size, or concurrency x length."""
    sampler_bytes: float
    """Bytes of the sampler's dummy run for each of (sequences x vocabulary)."""
    default_block_size: int = 16
    note: str = ""

    def default_batch(self, gpu_bytes: int, gpu_name: str = "") -> tuple[int, int]:
        """(max_num_batched_tokens, max_num_seqs) of the API server when nothing is asked for."""
        raise NotImplementedError


def behaviour(engine: str, version: str) -> EngineBehaviour:
    """What is known of `version` (`0.32.0`, `0.11.1rc2`; empty: the newest known) of `engine`.

    Raises:
        InvalidSpec: an engine that is not known here, or a version that is no version.
    """
    raise NotImplementedError
