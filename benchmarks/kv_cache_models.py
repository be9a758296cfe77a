"""Tiny models, one for each kind of attention that vLLM plans on a CPU: config.json is all they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

GIB = 1 << 30


@dataclass(frozen=True)
class Case:
    name: str
    about: str
    config: dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """The engine's arguments."""
        return {
            "dtype": "bfloat16",
            "max_model_len": 4096,
            "max_num_batched_tokens": 2048,
            "max_num_seqs": 4,
            "kv_cache_memory_bytes": GIB // 4,
            **self.arguments,
        }


def dense(**changes: Any) -> dict[str, Any]:
    base = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 1024,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {**base, **changes}


GEMMA3 = dense(
    architectures=["Gemma3ForCausalLM"],
    model_type="gemma3_text",
    num_hidden_layers=12,
    sliding_window=512,
    layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 2,
    query_pre_attn_scalar=64,
    hidden_activation="gelu_pytorch_tanh",
    rope_local_base_freq=10000.0,
    rope_theta=1000000.0,
)

GPT_OSS = dense(
    architectures=["GptOssForCausalLM"],
    model_type="gpt_oss",
    sliding_window=128,
    layer_types=["sliding_attention", "full_attention"] * 2,
    num_local_experts=4,
    num_experts_per_tok=2,
    attention_bias=True,
    swiglu_limit=7.0,
    rope_theta=150000,
    tie_word_embeddings=False,
)

QWEN3_NEXT = dense(
    architectures=["Qwen3NextForCausalLM"],
    model_type="qwen3_next",
    num_hidden_layers=8,
    layer_types=(["linear_attention"] * 3 + ["full_attention"]) * 2,
    full_attention_interval=4,
    linear_num_key_heads=4,
    linear_num_value_heads=8,
    linear_key_head_dim=64,
    linear_value_head_dim=64,
    linear_conv_kernel_dim=4,
    moe_intermediate_size=64,
    shared_expert_intermediate_size=64,
    num_experts=4,
    num_experts_per_tok=2,
    decoder_sparse_step=1,
    norm_topk_prob=True,
    mlp_only_layers=[],
    partial_rotary_factor=0.25,
    rope_theta=10000000,
)

DEEPSEEK = dense(
    architectures=["DeepseekV3ForCausalLM"],
    model_type="deepseek_v3",
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    q_lora_rank=64,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    n_routed_experts=4,
    n_shared_experts=1,
    num_experts_per_tok=2,
    moe_intermediate_size=64,
    first_k_dense_replace=1,
    moe_layer_freq=1,
    n_group=1,
    topk_group=1,
    topk_method="noaux_tc",
    scoring_func="sigmoid",
    norm_topk_prob=True,
    routed_scaling_factor=1.0,
    rope_theta=10000,
    tie_word_embeddings=False,
)
DEEPSEEK.pop("head_dim")

MISTRAL = dense(
    architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=512, rope_theta=10000.0
)

GEMMA4 = dense(
    architectures=["Gemma4ForCausalLM"],
    model_type="gemma4_text",
    num_hidden_layers=12,
    sliding_window=512,
    layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 2,
    num_key_value_heads=4,
    num_global_key_value_heads=2,
    global_head_dim=128,
    attention_k_eq_v=True,
    hidden_size_per_layer_input=0,
    vocab_size_per_layer_input=1024,
    num_kv_shared_layers=0,
    enable_moe_block=False,
    hidden_activation="gelu_pytorch_tanh",
    rope_parameters={
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
)

LLAMA4 = dense(
    architectures=["Llama4ForCausalLM"],
    model_type="llama4_text",
    num_hidden_layers=8,
    attention_chunk_size=512,
    intermediate_size_mlp=256,
    num_local_experts=4,
    num_experts_per_tok=1,
    interleave_moe_layer_step=1,
    use_qk_norm=True,
    no_rope_layers=[1, 1, 1, 0] * 2,
    rope_theta=500000.0,
    tie_word_embeddings=False,
)

NEMOTRON_H = dense(
    architectures=["NemotronHForCausalLM"],
    model_type="nemotron_h",
    hybrid_override_pattern="M-M*M-M*",
    num_hidden_layers=8,
    mamba_num_heads=8,
    mamba_head_dim=64,
    ssm_state_size=64,
    n_groups=2,
    conv_kernel=4,
    chunk_size=128,
    expand=2,
    mamba_hidden_act="silu",
    mlp_hidden_act="relu2",
    use_conv_bias=True,
    layer_norm_epsilon=1e-5,
    tie_word_embeddings=False,
)

MIMO = dense(
    architectures=["MiMoV2FlashForCausalLM"],
    model_type="mimo_v2_flash",
    num_hidden_layers=6,
    hybrid_layer_pattern=[0, 1, 1, 0, 1, 1],
    sliding_window=128,
    sliding_window_size=128,
    attention_chunk_size=128,
    v_head_dim=32,
    swa_num_attention_heads=8,
    swa_num_key_value_heads=4,
    swa_head_dim=64,
    swa_v_head_dim=32,
    moe_layer_freq=[0, 1, 1, 1, 1, 1],
    moe_intermediate_size=64,
    n_routed_experts=4,
    n_shared_experts=None,
    num_experts_per_tok=2,
    norm_topk_prob=True,
    scoring_func="sigmoid",
    n_group=1,
    topk_group=1,
    topk_method="noaux_tc",
    swa_rope_theta=10000,
    rope_theta=5000000,
    partial_rotary_factor=0.334,
    layernorm_epsilon=1e-5,
    add_swa_attention_sink_bias=True,
    add_full_attention_sink_bias=False,
    attention_value_scale=0.707,
    tie_word_embeddings=False,
)

CASES = [
    Case("gqa", "grouped-query, 2 of 8 heads", dense()),
    Case("gqa-fp8", "the same with 8-bit keys and values", dense(), {"kv_cache_dtype": "fp8"}),
    Case("gqa-float32", "the same in float32", dense(), {"dtype": "float32"}),
    Case("gqa-odd", "the same, a length that no block divides", dense(), {"max_model_len": 3001}),
    Case("mha", "a key-value head for every head", dense(num_key_value_heads=8)),
    Case("mqa", "one key-value head", dense(num_key_value_heads=1)),
    Case("mla", "latent attention (DeepSeek V3)", DEEPSEEK),
    Case("sliding", "every layer a window of 512 (Mistral)", MISTRAL),
    Case("sliding-5-1", "five local layers to one global (Gemma 3)", GEMMA3),
    Case("sliding-5-1-batch", "the same, small batches", GEMMA3, {"max_num_batched_tokens": 256}),
    Case(
        "sliding-uneven",
        "11 local and 3 global layers: padded groups",
        {
            **GEMMA3,
            "num_hidden_layers": 14,
            "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 2
            + ["sliding_attention", "full_attention"],
        },
    ),
    Case("gpt-oss", "alternating window of 128 and full", GPT_OSS),
    Case("linear", "three gated delta nets to one full layer (Qwen3-Next)", QWEN3_NEXT),
    Case("linear-fp8", "the same with 8-bit keys and values", QWEN3_NEXT, {"kv_cache_dtype": "fp8"}),
    Case("sliding-wide-global", "global layers with wider heads and fewer of them (Gemma 4)", GEMMA4),
    Case(
        "sliding-two-sizes",
        "global pages twice as large as local ones",
        {**GEMMA4, "num_global_key_value_heads": 4},
    ),
    Case(
        "sliding-odd-sizes",
        "global pages half as large again: local ones padded",
        {**GEMMA4, "num_global_key_value_heads": 3, "num_attention_heads": 12},
    ),
    Case("sliding-narrow-values", "more heads in local layers, values narrower than keys (MiMo V2)", MIMO),
    Case("chunked", "three layers of chunks of 512 to one full (Llama 4)", LLAMA4),
    Case("mamba", "Mamba-2, attention and feed-forward layers (Nemotron-H)", NEMOTRON_H),
]
