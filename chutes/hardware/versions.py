"""What one release of an engine does with memory: every prediction is keyed by it.

The numbers are data, `releases` in hardware_profiles.yaml, where each has its source; here they are picked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from chutes.exception import InvalidSpec
from chutes.hardware import profiles as shelf
from chutes.hardware import sglang
from chutes.hardware.profiles import Profiles
from chutes.hardware.releases import BatchClass, Releases, SecondRunner, SparseMla, parse
from chutes.hardware.terms import KvDtype, Setting
from chutes.model.facts import ModelFacts

__all__ = ["EngineBehaviour", "behaviour", "newest", "parse"]

GIB = 1 << 30


@dataclass(frozen=True)
class EngineBehaviour:
    """What one release of one engine does."""

    engine: str
    version: str
    default_utilization: float | None
    """None: the engine works it out of GPU and layout."""
    cuda_graphs_subtracted: bool = False
    """Whether the CUDA graphs' memory comes out of the budget before the KV cache is sized. Where not, they
    live in what the budget leaves over, and a high utilization runs out of memory after start-up."""
    in_flight_batches: int = 1
    """Scheduled batches whose tokens sliding and chunked layers hold at once, on a GPU without pipeline."""
    token_count: Literal["blocks", "concurrency"] = "blocks"
    """How "KV cache size: N tokens" is made: blocks // groups x block size, or concurrency x length."""
    sampler_bytes: float = 0.0
    """Bytes of the sampler's dummy run for each of (sequences x vocabulary)."""
    cuda_graph_bytes: int = 0
    """Expected of the CUDA graphs of one GPU."""
    cuda_graph_most: int = 0
    """The most that was seen of them."""
    null_block: bool = False
    """Whether the block that the pool holds back is counted when a start is refused."""
    hybrid_prefix_caching: bool = False
    """Whether models with linear layers cache prefixes unasked: their requests then keep a second state."""
    prefill_checkpoints: bool = False
    """Whether they keep states inside a prefill beside it."""
    hybrid_with_chunks: bool = True
    """Whether layers with chunked attention drop what they no longer see; where not, they keep everything."""
    one_item_tokens: Mapping[str, int] = field(default_factory=dict)
    """By architecture: tokens of the largest image or video, where it must be in one batch."""
    sparse_mla: Mapping[int, SparseMla] = field(default_factory=dict)
    """By major compute capability: where sparse MLA has a kernel, and how it keeps 8 bits."""
    fp8_cache_unasked: tuple[str, ...] = ()
    """Architectures whose cache is in fp8 on compute capability 10.x when no format is asked for."""
    batches: tuple[BatchClass, ...] = ()
    second_runner: SecondRunner = field(default_factory=SecondRunner)
    on_second_runner: bool = False
    note: str = ""

    def default_batch(self, gpu_bytes: int, gpu_name: str = "") -> tuple[int, int]:
        """(max_num_batched_tokens, max_num_seqs) of the API server when nothing is asked for.

        vLLM engine/arg_utils.py, `get_batch_defaults`. An A800 is not an A100 there.
        """
        name = gpu_name.lower()
        for one in self.batches:
            if gpu_bytes >= one.from_gib * GIB and not any(part in name for part in one.not_named):
                return one.max_num_batched_tokens, one.max_num_seqs
        raise AssertionError("the last class takes every GPU")

    def batch(
        self, facts: ModelFacts, setting: Setting, gpu_bytes: int, gpu_name: str = ""
    ) -> tuple[int, int]:
        """(max_num_batched_tokens, max_num_seqs) as they are settled; vLLM engine/arg_utils.py
        `_set_default_max_num_seqs_and_batched_tokens_args`.

        Where only the number of requests is given and the batch is smaller, vLLM refuses to start; here the
        batch is raised, because a plan tells the engine both.
        """
        tokens, seqs = self.default_batch(gpu_bytes, gpu_name)
        if setting.max_num_seqs is not None:
            seqs = setting.max_num_seqs
        if setting.max_num_batched_tokens is None:
            if facts.attention == "encoder":  # a prompt is not cut, it sees itself from both ends
                tokens = max(tokens, setting.max_model_len)
            tokens = max(tokens, self.one_item_tokens.get(facts.architecture, 0))
            tokens = min(tokens, seqs * setting.max_model_len)
            if setting.max_num_seqs is not None:
                tokens = max(tokens, seqs)
        else:
            tokens = setting.max_num_batched_tokens
        return tokens, seqs if setting.max_num_seqs is not None else min(seqs, tokens)

    def cache_dtype(self, facts: ModelFacts, asked: KvDtype, capability: tuple[int, int]) -> KvDtype:
        """What the cache is kept in on a GPU where `asked` was asked for; models/config.py of vLLM."""
        small = asked == "fp8" or facts.kv_cache_fp8 or self.unasked_fp8(facts, capability)
        return "fp8" if small else "auto"

    def unasked_fp8(self, facts: ModelFacts, capability: tuple[int, int]) -> bool:
        return facts.architecture in self.fp8_cache_unasked and capability[0] == 10

    def packs_latent(self, cache: KvDtype, capability: tuple[int, int]) -> bool:
        """Whether sparse MLA is kept in packed blobs; on a GPU that is not known as most kernels have it."""
        how = self.sparse_mla.get(capability[0], "packed")
        return how == "always" or (how == "packed" and cache == "fp8")

    def in_flight_tokens(self, max_num_batched_tokens: int, pipeline_parallel: int = 1) -> int:
        """Tokens that are scheduled and not settled; vLLM config/vllm.py `max_in_flight_tokens`, since 0.26.

        Two batches overlap under asynchronous scheduling. With a pipeline the second runner keeps one batch
        a stage and one more; the first one does not overlap there. Before 0.26 one batch was counted whatever
        the pipeline (v1/kv_cache_interface.py `SlidingWindowSpec.max_memory_usage_bytes`).
        """
        batches = self.in_flight_batches
        if batches > 1 and pipeline_parallel > 1:
            batches = pipeline_parallel + (1 if self.on_second_runner else 0)
        return batches * max_num_batched_tokens

    def running(self, facts: ModelFacts) -> EngineBehaviour:
        """The same for one model: which of the two runners has it; vLLM config/vllm.py `use_v2_model_runner`.

        Speculative decoding and other options that send a model back to the first runner are not planned.
        """
        runner = self.second_runner
        linear = any(layer.kind == "linear" for layer in facts.layers_attention)
        listed = facts.architecture in runner.architectures
        if runner.listed_only_plain:
            listed = listed and facts.experts is None and facts.quantization is None
        chosen = {
            "none": False,
            "listed": listed,
            "dense": listed or (facts.experts is None and not linear),
            "all": True,
        }[runner.models]
        if not chosen:
            return self
        return replace(
            self,
            on_second_runner=True,
            sampler_bytes=runner.sampler_bytes,
            cuda_graphs_subtracted=self.cuda_graphs_subtracted and runner.cuda_graphs_estimated,
        )


def behaviour(engine: str, version: str, profiles: Profiles | None = None) -> EngineBehaviour:
    """What is known of `version` (`0.32.0`, `0.11.1rc2`; empty: the newest read) of `engine`.

    Args:
        profiles: whose `releases` say it; those that are shipped where it is None or has none.

    Raises:
        InvalidSpec: an engine that is not known here, or a version that is no version.
    """
    if engine == "sglang":
        version = version or sglang.READ
        parse(version)
        return EngineBehaviour(engine, version, None, note=sglang.note(version))
    known = _releases(engine, profiles)
    version = version or known.read_up_to
    found = known.of(version)
    newer = parse(version) > parse(known.read_up_to)
    names = EngineBehaviour.__dataclass_fields__.keys() & found.keys()
    settled = {name: found[name] for name in names} | {
        "batches": tuple(found["batches"]),
        "fp8_cache_unasked": tuple(found["fp8_cache_unasked"]),
        "cuda_graph_bytes": int(found["cuda_graph_gib"] * GIB),
        "cuda_graph_most": int(found["cuda_graph_most_gib"] * GIB),
    }
    oldest = known.rules[0].since
    if parse(version) < parse(oldest):
        settled["note"] = (
            f"{engine} {version} is older than {oldest}, the first release whose rules were read, and is "
            "counted as that one"
        )
    if newer:
        settled["note"] = (
            f"{engine} {version} is newer than {known.read_up_to}, the last release whose rules were read, "
            "and is counted as that one"
        )
    return EngineBehaviour(engine=engine, version=version, **settled)


def newest(engine: str) -> str:
    """The newest release whose source was read."""
    return behaviour(engine, "").version


def _releases(engine: str, profiles: Profiles | None) -> Releases:
    own = profiles.releases if profiles is not None else {}
    found = own.get(engine) or _shipped().releases.get(engine)
    if found is None:
        known = ", ".join(sorted({*own, *_shipped().releases, "sglang"}))
        raise InvalidSpec(f"The memory use of engine {engine!r} is not known.", f"Known are: {known}.")
    return found


@lru_cache(maxsize=1)
def _shipped() -> Profiles:
    return shelf.load()
