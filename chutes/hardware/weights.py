"""Bytes of weights on one GPU under tensor, pipeline and expert parallelism. Pure."""

from __future__ import annotations

from math import ceil

from pydantic import BaseModel, ConfigDict

from chutes.exception import ModelError
from chutes.model.facts import ModelFacts

GIB = 1 << 30

# Buffers beside the parameters (rotary tables, workspaces): loaded less stored over five text models [fit].
LOAD_BYTES = int(0.03 * GIB)

_NO_SIZE = "Give a model whose safetensors headers can be read, or one of the catalogue."


class Layout(BaseModel):
    """How one instance is spread over its GPUs: tensor_parallel x pipeline_parallel of them."""

    model_config = ConfigDict(frozen=True)

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: bool = False

    @property
    def gpus(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel


SINGLE = Layout()


def stages(layers: int, pipeline_parallel: int) -> list[range]:
    """The layers of each pipeline stage; vLLM distributed/utils.py `get_pp_indices`.

    What does not divide evenly goes to the stages before the last one, from behind: the last stage has the
    head to carry.
    """
    counts = [layers // pipeline_parallel] * pipeline_parallel
    for index in range(2, layers % pipeline_parallel + 2):
        counts[-index] += 1
    begin, found = 0, []
    for count in counts:
        found.append(range(begin, begin + count))
        begin += count
    return found


def stages_of(facts: ModelFacts, pipeline_parallel: int) -> list[range]:
    """The places of the layers of each pipeline stage; layers that keep nothing of a request are cut too."""
    places = [layer.place for layer in facts.layers_attention]
    return stages(max(facts.layers or 0, max(places, default=-1) + 1), pipeline_parallel)


def loaded_bytes(facts: ModelFacts) -> int:
    """Bytes of all weights once they are loaded on GPUs.

    Raises:
        ModelError: the facts do not say.
    """
    size = facts.loaded_bytes or facts.weights_bytes
    if not size:
        what = facts.architecture or facts.model_type or "this model"
        raise ModelError(f"The size of the weights of {what} is not known.", _NO_SIZE)
    # `--dtype auto` casts a float32 checkpoint to 16 bits (vLLM config/model.py `_resolve_auto_dtype`).
    return size // 2 if facts.dtype == "float32" and facts.quantization is None else size


def stage_weights(facts: ModelFacts, layout: Layout, stage: int) -> int:
    """Bytes of weights on each GPU of one pipeline stage.

    Linear layers and the vocabulary are cut by the tensor-parallel size; norms, routers and MLA's down
    projections are whole on every rank. The first stage has the embedding, the last the head; the layers are
    taken to be alike (of a model whose first layers are dense the first stage is less than this says).
    """
    loaded = loaded_bytes(facts)
    scale = loaded / (facts.loaded_bytes or facts.weights_bytes or loaded)
    embedding = int((facts.embedding_bytes or 0) * scale)
    head = 0 if facts.tied_embeddings else embedding
    body = loaded - embedding - head
    whole = min(int((facts.replicated_bytes or 0) * scale), body)
    layers = facts.layers or 1
    share = len(stages(layers, layout.pipeline_parallel)[stage]) / layers
    first, last = stage == 0, stage == layout.pipeline_parallel - 1
    ends = embedding if first else 0
    if last:
        ends += embedding if facts.tied_embeddings and not first else head
    tp = layout.tensor_parallel
    experts = int((facts.expert_bytes or 0) * scale)
    cut = (body - whole - experts) / tp + _expert_bytes(facts, layout, experts)
    return int((cut + whole) * share + ends / tp + _replicated_heads(facts, tp) * share) + LOAD_BYTES


def weights_per_gpu(facts: ModelFacts, layout: Layout = SINGLE) -> int:
    """Bytes of loaded weights on the fullest GPU.

    Raises:
        ModelError: the size of the weights is not known.
    """
    return max(stage_weights(facts, layout, stage) for stage in range(layout.pipeline_parallel))


def _expert_bytes(facts: ModelFacts, layout: Layout, experts: int) -> float:
    """Of routed experts on one rank: whole experts with expert parallelism, slices of all without."""
    tp = layout.tensor_parallel
    if not facts.experts or not experts:
        return experts / tp
    if layout.expert_parallel:
        return experts / facts.experts.count * ceil(facts.experts.count / tp)
    return experts / tp * _mxfp4_padding(facts, tp)


def _mxfp4_padding(facts: ModelFacts, tp: int) -> float:
    """MXFP4 kernels pad an expert: hidden size to 256, intermediate size of a rank to 64 (Triton).

    gpt-oss loads 13.47 GiB (20b) and 64.38 (120b) where 12.82 and 60.77 are stored: 2880 padded to 3072
    explains both within 0.2 GiB [log]. Marlin, on GPUs before Hopper, pads the intermediate size to 128 too:
    65.97 GiB for 120b [log], 2 % more than this says.
    """
    if facts.quantization is None or facts.quantization.method != "mxfp4":
        return 1.0
    hidden, inner = facts.hidden_size, facts.experts.intermediate if facts.experts else 0
    if not hidden or not inner:
        return 1.0
    mine = inner / tp
    return (ceil(hidden / 256) * 256 / hidden) * (ceil(mine / 64) * 64 / mine)


def _replicated_heads(facts: ModelFacts, tp: int) -> float:
    """Key and value projections held more than once when there are fewer key-value heads than ranks."""
    hidden, extra = facts.hidden_size or 0, 0.0
    width = facts.quantization.bits / 8 if facts.quantization else 2.0
    for layer in facts.layers_attention:
        if layer.kind in ("full", "sliding", "chunked") and 0 < layer.kv_heads < tp:
            one = hidden * (layer.head_dim_k + layer.head_dim_v) * width
            extra += one * (1 - layer.kv_heads / tp)
    return extra
