"""Every model that is named in the documentation or the catalogue: its family, and the parsers that read
it."""

from __future__ import annotations

import pytest

from chutes.engine.families import FAMILIES, arguments, capabilities, find
from chutes.model import catalogue

# vLLM 0.32: vllm/tool_parsers/__init__.py and vllm/reasoning/__init__.py.
VLLM_TOOLS = {
    "dots",
    "deepseek_v3",
    "deepseek_v31",
    "deepseek_v32",
    "deepseek_v4",
    "deepseek_v41",
    "cohere_command3",
    "cohere_command4",
    "ernie45",
    "glm45",
    "glm47",
    "ling3",
    "granite-20b-fc",
    "granite",
    "granite4",
    "hermes",
    "hf",
    "poolside_v1",
    "hunyuan_a13b",
    "hy_v3",
    "hy_v4",
    "internlm",
    "jamba",
    "lfm2",
    "kimi_k2",
    "kimi_k3",
    "k2_horizon",
    "llama3_json",
    "llama4_json",
    "llama4_pythonic",
    "longcat",
    "mimo",
    "minimax_m2",
    "minimax_m3",
    "minicpm5",
    "mistral",
    "olmo3",
    "plamo3",
    "muse_glimmer",
    "openai",
    "phi4_mini_json",
    "pythonic",
    "qwen3_coder",
    "qwen3_json",
    "qwen3_xml",
    "seed_oss",
    "step3",
    "step3p5",
    "inkling",
    "xlam",
    "gigachat3",
    "functiongemma",
    "gemma4",
    "apertus",
}
VLLM_REASONING = {
    "deepseek_r1",
    "deepseek_v3",
    "deepseek_v4",
    "deepseek_v41",
    "poolside_v1",
    "cohere_command3",
    "cohere_command4",
    "ernie45",
    "gemma4",
    "glm45",
    "glm47",
    "ling3",
    "openai_gptoss",
    "granite",
    "granite_thinking_parser",
    "hf",
    "holo2",
    "hunyuan_a13b",
    "hy_v3",
    "hy_v4",
    "kimi_k2",
    "kimi_k3",
    "k2_horizon",
    "mimo",
    "minicpmv",
    "minimax_m2",
    "minimax_m2_append_think",
    "minimax_m3",
    "mistral",
    "nemotron_v3",
    "olmo3",
    "plamo3",
    "muse_glimmer",
    "qwen3",
    "seed_oss",
    "step3",
    "step3p5",
    "inkling",
}
# SGLang 0.5.23: ToolCallParserEnum and DetectorMap; without names that it calls deprecated.
SGLANG_TOOLS = {
    "apertus2509",
    "beam",
    "cohere_command4",
    "deepseekv3",
    "deepseekv31",
    "deepseekv32",
    "deepseekv4",
    "deepseekv41",
    "dots",
    "glm",
    "glm47",
    "gpt-oss",
    "k2_horizon",
    "kimi_k2",
    "kimi_k3",
    "lfm2",
    "ling3",
    "llama3",
    "mimo",
    "minicpm5",
    "mistral",
    "muse",
    "poolside_v1",
    "pythonic",
    "qwen",
    "qwen3_coder",
    "spark25",
    "step3",
    "step3p5",
    "minimax-m2",
    "minimax-m3",
    "nanbeige",
    "trinity",
    "interns1",
    "hermes",
    "hunyuan",
    "gigachat3",
    "gigachat35",
    "gemma4",
    "inkling",
    "iquest_q1",
    "response_template",
}
SGLANG_REASONING = {
    "apertus2509",
    "beam",
    "deepseek-r1",
    "deepseek-v3",
    "deepseek-v4",
    "deepseek-v41",
    "dots",
    "glm45",
    "ling3",
    "hunyuan",
    "gpt-oss",
    "k2_horizon",
    "kimi",
    "kimi_k2",
    "kimi_k3",
    "mimo",
    "muse",
    "poolside_v1",
    "qwen3",
    "qwen3-thinking",
    "minimax",
    "minimax-append-think",
    "minimax-m3",
    "nanbeige",
    "step3",
    "step3p5",
    "mistral",
    "nemotron_3",
    "granite_thinking_parser",
    "interns1",
    "gemma4",
    "gigachat35",
    "inkling",
    "iquest_q1",
    "cohere_command4",
    "response_template",
}

# The tables of the published documentation: does it think?
PUBLISHED = {
    "MiniMaxAI/MiniMax-M2.1-TEE": ("minimax-m2", True),
    "moonshotai/Kimi-K2-Thinking-TEE": ("kimi-k2-thinking", True),
    "zai-org/GLM-4.6-TEE": ("glm-4.5", True),
    "zai-org/GLM-4.7-TEE": ("glm-4.7", True),
    "XiaomiMiMo/MiMo-V2-Flash": ("mimo-v2", True),
    "deepseek-ai/DeepSeek-V3.1-TEE": ("deepseek-v3.1", True),
    "deepseek-ai/DeepSeek-V3.2-TEE": ("deepseek-v3.2", True),
    "Qwen/Qwen3-32B": ("qwen3", True),
    "Qwen/Qwen3-14B": ("qwen3", True),
    "moonshotai/Kimi-K2-Instruct-0905": ("kimi-k2", False),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8-TEE": ("qwen3-coder", False),
    "Qwen/Qwen2.5-Coder-32B-Instruct": ("qwen2.5", False),
}

# All of the catalogue.
KNOWN = {
    "BAAI/bge-large-en-v1.5": None,
    "HuggingFaceTB/SmolLM2-135M-Instruct": None,
    "MiniMaxAI/MiniMax-M2.1": "minimax-m2",
    "Qwen/Qwen2.5-Coder-32B-Instruct": "qwen2.5",
    "Qwen/Qwen3-14B": "qwen3",
    "Qwen/Qwen3-235B-A22B": "qwen3",
    "Qwen/Qwen3-30B-A3B": "qwen3",
    "Qwen/Qwen3-32B": "qwen3",
    "Qwen/Qwen3-8B": "qwen3",
    "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8": "qwen3-coder",
    "Qwen/Qwen3-Embedding-8B": None,
    "Qwen/Qwen3-Next-80B-A3B-Instruct": "qwen3-instruct",
    "XiaomiMiMo/MiMo-V2-Flash": "mimo-v2",
    "black-forest-labs/FLUX.1-dev": None,
    "black-forest-labs/FLUX.1-schnell": None,
    "deepseek-ai/DeepSeek-V3.1": "deepseek-v3.1",
    "deepseek-ai/DeepSeek-V3.2": "deepseek-v3.2",
    "google/gemma-3-1b-it": None,
    "google/gemma-3-270m-it": None,
    "google/gemma-3-27b-it": None,
    "meta-llama/Llama-3.1-405B-Instruct": "llama-3",
    "meta-llama/Llama-3.1-70B-Instruct": "llama-3",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3",
    "meta-llama/Llama-3.2-1B-Instruct": "llama-3",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": "llama-4",
    "microsoft/phi-4": None,
    "mistralai/Mistral-7B-Instruct-v0.3": "mistral",
    "mistralai/Mixtral-8x22B-Instruct-v0.1": "mistral",
    "mistralai/Mixtral-8x7B-Instruct-v0.1": None,
    "moonshotai/Kimi-K2-Instruct-0905": "kimi-k2",
    "moonshotai/Kimi-K2-Thinking": "kimi-k2-thinking",
    "openai/gpt-oss-120b": "gpt-oss",
    "openai/gpt-oss-20b": "gpt-oss",
    "stabilityai/stable-diffusion-xl-base-1.0": None,
    "zai-org/GLM-4.6": "glm-4.5",
    "zai-org/GLM-4.7": "glm-4.7",
}


def family_of(name: str) -> str | None:
    facts = catalogue.find(name)
    found = find(name, facts.model_type, facts.architecture) if facts else find(name)
    return found.name if found else None


def test_every_parser_is_one_of_the_engines():
    for family in FAMILIES:
        assert family.vllm.tools in VLLM_TOOLS | {""}, family.name
        assert family.vllm.reasoning in VLLM_REASONING | {""}, family.name
        assert family.sglang.tools in SGLANG_TOOLS | {""}, family.name
        assert family.sglang.reasoning in SGLANG_REASONING | {""}, family.name


@pytest.mark.parametrize(("name", "expected"), PUBLISHED.items())
def test_published_models(name: str, expected: tuple[str, bool]):
    found = find(name)
    assert found is not None
    assert (found.name, bool(found.vllm.reasoning)) == expected
    assert bool(found.sglang.reasoning) == expected[1]
    assert found.vllm.tools
    assert found.sglang.tools


def test_the_catalogue():
    assert {name: family_of(name) for name in catalogue.names()} == KNOWN


@pytest.mark.parametrize(
    ("name", "model_type", "architecture", "expected"),
    [
        ("/models/mine", "qwen3_moe", "Qwen3MoeForCausalLM", "qwen3-like"),
        ("acme/support-bot", "qwen3", "Qwen3ForCausalLM", "qwen3-like"),
        ("/models/mine", "deepseek_v32", "DeepseekV32ForCausalLM", "deepseek-v3.2"),
        ("/models/mine", "glm4_moe", "Glm4MoeForCausalLM", "glm-4.5"),
        ("/models/mine", "glm_moe_dsa", "GlmMoeDsaForCausalLM", "glm-4.7"),
        ("/models/mine", "kimi_k25", "KimiK25ForConditionalGeneration", "kimi-k2-thinking"),
        ("/models/mine", "step3p7", "Step3p7FlashForCausalLM", "step-3.5"),
        ("/models/mine", "qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", "qwen3.5"),
        ("/models/mine", "deepseek_ref", "DeepseekV4ForCausalLM", "deepseek-v4"),
        # Shared by many families.
        ("/models/mine", "llama", "LlamaForCausalLM", None),
        ("/models/mine", "deepseek_v3", "DeepseekV3ForCausalLM", None),
        ("/models/mine", "nemotron_h", "NemotronHForCausalLM", None),
        ("nvidia/Llama-3_3-Nemotron-Super-49B-v1", "nemotron-nas", "DeciLMForCausalLM", None),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "nemotron_h", "NemotronHForCausalLM", "nemotron-3"),
        ("nvidia/Kimi-K2.7-Code-NVFP4", "", "", "kimi-k2-thinking"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3_moe", "", "qwen3-instruct"),
        ("Qwen/Qwen3-VL-32B-Thinking", "qwen3_vl", "", "qwen3-thinking"),
        ("Qwen/Qwen3-8B-Base", "qwen3", "Qwen3ForCausalLM", None),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "qwen2", "Qwen2ForCausalLM", "deepseek-r1-distill"),
        ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", "qwen3", "Qwen3ForCausalLM", "deepseek-r1-distill"),
        ("deepseek-ai/DeepSeek-R1", "deepseek_v3", "DeepseekV3ForCausalLM", "deepseek-r1"),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek_v3", "DeepseekV3ForCausalLM", "deepseek-v3"),
        ("meta-llama/Llama-3.1-8B", "llama", "LlamaForCausalLM", None),
    ],
)
def test_names_and_architectures(name: str, model_type: str, architecture: str, expected: str | None):
    found = find(name, model_type, architecture)
    assert (found.name if found else None) == expected


QWEN = find("Qwen/Qwen3-32B")
TOOLS = ["--tool-call-parser", "hermes", "--enable-auto-tool-choice"]
THOUGHTS = ["--reasoning-parser", "qwen3"]


@pytest.mark.parametrize(
    ("args", "added"),
    [
        ([], [*TOOLS, *THOUGHTS]),
        (["--tool-call-parser", "pythonic"], ["--enable-auto-tool-choice", *THOUGHTS]),
        (["--tool_call_parser=pythonic", "--enable-auto-tool-choice"], THOUGHTS),
        (["--enable-auto-tool-choice"], [*TOOLS[:2], *THOUGHTS]),
        (["--no-enable-auto-tool-choice"], THOUGHTS),
        (["--reasoning-parser", "deepseek_r1"], TOOLS),
        (["--reasoning-parser="], TOOLS),
    ],
)
def test_the_authors_own_flags_count(args: list[str], added: list[str]):
    assert arguments("vllm", QWEN, args) == added


def test_other_engines_and_models():
    assert arguments("vllm", None, []) == []
    assert arguments("diffusion", QWEN, []) == []
    assert arguments("sglang", QWEN, []) == ["--tool-call-parser", "qwen", "--reasoning-parser", "qwen3"]
    assert arguments("vllm", find("Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"), []) == [
        *("--tool-call-parser", "qwen3_xml", "--enable-auto-tool-choice"),
    ]


def test_a_template_that_does_not_show_tools_needs_another():
    family = find("deepseek-ai/DeepSeek-V3.1")
    assert arguments("vllm", family, []) == ["--reasoning-parser", "deepseek_v3"]
    assert "deepseek_v31" in arguments("vllm", family, ["--chat-template", "mine.jinja"])


CHAT = ["/v1/chat/completions", "/v1/completions", "/tokenize"]


def test_capabilities_follow_from_what_the_engine_is_started_with():
    able = ["chat", "completions", "json_schema"]
    assert capabilities("vllm", None, [], CHAT) == able
    assert capabilities("vllm", QWEN, arguments("vllm", QWEN, []), CHAT) == [*able, "tools", "reasoning"]
    assert capabilities("vllm", None, ["--reasoning-parser=x"], CHAT, vision=True) == [
        *able,
        "reasoning",
        "vision",
    ]
    oss = find("openai/gpt-oss-20b")
    assert "harmony" in capabilities("vllm", oss, [], CHAT)
    assert capabilities("vllm", QWEN, [], ["/v1/embeddings"]) == ["embeddings"]
    assert capabilities("diffusion", None, [], ["/v1/images/generations"]) == ["images"]
    assert capabilities("vllm", None, [], ["/generate"]) == []
