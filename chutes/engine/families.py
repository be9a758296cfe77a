"""Which parsers read a model's tool calls and thoughts, so that its author need not know. Pure.

A wrong parser is worse than none: a reasoning parser on a model that does not think hides its whole
answer, and vLLM does not start with one that its tokenizer has no tokens for. So a family is named only
where its makers' or the engines' documentation does, and an architecture that many families share
(Llama's, Qwen2's, Mistral's, DeepSeek-V3's) says nothing without the model's name.

Names are those of vLLM 0.32 (vllm/tool_parsers/__init__.py, vllm/reasoning/__init__.py) and SGLang 0.5.23
(srt/function_call/function_call_parser.py, srt/parser/reasoning_parser.py). Which one is whose: vLLM's
docs/features/tool_calling.md and reasoning_outputs.md, and the parsers' own docstrings.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import NamedTuple


class Parsers(NamedTuple):
    """Values of `--tool-call-parser` and `--reasoning-parser`; empty for none."""

    tools: str = ""
    reasoning: str = ""


class Family(NamedTuple):
    """Models that write tool calls and thoughts in the same way."""

    name: str
    pattern: str
    """Found in `name model_type architecture`, in lower case."""
    vllm: Parsers = Parsers()
    sglang: Parsers = Parsers()
    own_template: bool = True
    """Whether the chat template that comes with the model shows it the tools. Where it does not, tools
    would be accepted and never seen, so they are parsed only if the author gives a `--chat-template`."""


# The first that matches counts.
FAMILIES = (
    # No chat, or none that these parsers would read.
    Family("none", r"embed|rerank|reward|[-_]base\b|llama.*nemotron|\b(bert|roberta|xlm)"),
    Family("gpt-oss", r"gpt[-_]?oss", Parsers("openai", "openai_gptoss"), Parsers("gpt-oss", "gpt-oss")),
    Family(
        "deepseek-r1-distill",
        r"deepseek-r1-(distill|0528-qwen)",
        Parsers("", "deepseek_r1"),
        Parsers("", "deepseek-r1"),
    ),
    Family("kimi-k3", r"kimi[-_]?k3", Parsers("kimi_k3", "kimi_k3"), Parsers("kimi_k3", "kimi_k3")),
    Family(
        "kimi-k2-thinking",
        r"kimi[-_]?k2([._][5-9]|[5-9]|-thinking)",
        Parsers("kimi_k2", "kimi_k2"),
        Parsers("kimi_k2", "kimi_k2"),
    ),
    Family("kimi-k2", r"kimi[-_]k2", Parsers("kimi_k2"), Parsers("kimi_k2")),
    Family(
        "deepseek-v4.1",
        r"deepseek[-_]?v4[._]?1\b",
        Parsers("deepseek_v41", "deepseek_v41"),
        Parsers("deepseekv41", "deepseek-v41"),
    ),
    Family(
        "deepseek-v4",
        r"deepseek[-_]?v4",
        Parsers("deepseek_v4", "deepseek_v4"),
        Parsers("deepseekv4", "deepseek-v4"),
    ),
    Family(
        "deepseek-v3.2",
        r"deepseek[-_]?v3[._]?2",
        Parsers("deepseek_v32", "deepseek_v3"),
        Parsers("deepseekv32", "deepseek-v3"),
    ),
    Family(
        "deepseek-v3.1",
        r"deepseek-v3\.1",
        Parsers("deepseek_v31", "deepseek_v3"),
        Parsers("deepseekv31", "deepseek-v3"),
        own_template=False,
    ),
    Family(
        "deepseek-r1",
        r"deepseek-r1",
        Parsers("deepseek_v3", "deepseek_r1"),
        Parsers("deepseekv3", "deepseek-r1"),
        own_template=False,
    ),
    Family(
        "deepseek-v3", r"deepseek-v3\b", Parsers("deepseek_v3"), Parsers("deepseekv3"), own_template=False
    ),
    Family(
        "glm-4.7",
        r"glm-?(4\.[7-9]|5)|glm_moe_dsa|glm4_moe_lite",
        Parsers("glm47", "glm47"),
        Parsers("glm47", "glm45"),
    ),
    Family("glm-4.5", r"glm-?4\.[56]|glm4v?_moe", Parsers("glm45", "glm45"), Parsers("glm", "glm45")),
    Family(
        "minimax-m3",
        r"minimax[-_]?m3",
        Parsers("minimax_m3", "minimax_m3"),
        Parsers("minimax-m3", "minimax-m3"),
    ),
    Family(
        "minimax-m2", r"minimax[-_]?m2", Parsers("minimax_m2", "minimax_m2"), Parsers("minimax-m2", "minimax")
    ),
    Family("mimo-v2", r"mimo[-_]?v2", Parsers("mimo", "mimo"), Parsers("mimo", "mimo")),
    Family("step-3.5", r"step-?3[.p][5-9]", Parsers("step3p5", "step3p5"), Parsers("step3p5", "step3p5")),
    Family("step-3", r"\bstep-?3\b", Parsers("step3", "step3"), Parsers("step3", "step3")),
    # The format of Qwen3-Coder, says vLLM's parser/nemotron_v3.py.
    Family(
        "nemotron-3",
        r"nemotron-3",
        Parsers("qwen3_coder", "nemotron_v3"),
        Parsers("qwen3_coder", "nemotron_3"),
    ),
    Family("gemma-4", r"\bgemma-?4", Parsers("gemma4", "gemma4"), Parsers("gemma4", "gemma4")),
    Family("qwen3-coder", r"qwen3-coder", Parsers("qwen3_xml"), Parsers("qwen3_coder")),
    Family("qwen3.5", r"qwen3[._][5-9]", Parsers("qwen3_coder", "qwen3"), Parsers("qwen3_coder", "qwen3")),
    Family("qwen3-instruct", r"qwen3\b.*\binstruct", Parsers("hermes"), Parsers("qwen")),
    Family(
        "qwen3-thinking", r"qwen3\b.*thinking", Parsers("hermes", "qwen3"), Parsers("qwen", "qwen3-thinking")
    ),
    # The originals, which think unless they are told not to; their parser takes what has no end of thought
    # for one, so a fine-tune of another kind with the same architecture must not get it.
    Family("qwen3", r"\bqwen3-\d+(\.\d+)?b\b", Parsers("hermes", "qwen3"), Parsers("qwen", "qwen3")),
    Family("qwen3-like", r"\bqwen3(_moe|_vl|_vl_moe|_next)?\b", Parsers("hermes"), Parsers("qwen")),
    Family("qwq", r"\bqwq-32b", Parsers("hermes", "deepseek_r1"), Parsers("qwen", "deepseek-r1")),
    Family("qwen2.5", r"qwen2\.5-(?!vl|omni|math).*instruct", Parsers("hermes"), Parsers("qwen")),
    Family("llama-4", r"llama-?4\b", Parsers("llama4_pythonic"), Parsers("pythonic"), own_template=False),
    Family("llama-3", r"llama-3[._][123]-.*instruct", Parsers("llama3_json"), Parsers("llama3")),
    Family("magistral", r"magistral", Parsers("mistral", "mistral"), Parsers("mistral", "mistral")),
    # Older ones have no token for tool calls, which the parser wants.
    Family(
        "mistral",
        r"mistral-7b-instruct-v0\.3|mixtral-8x22b-instruct|mistral-(small|medium|large|nemo)|ministral|devstral",
        Parsers("mistral"),
        Parsers("mistral"),
    ),
    Family("granite-4", r"granite-4", Parsers("granite4")),
    Family("seed-oss", r"seed[-_]oss", Parsers("seed_oss", "seed_oss")),
    Family("phi-4-mini", r"phi-4-mini-instruct", Parsers("phi4_mini_json")),
    Family("hermes", r"\bhermes-(2-pro|3|4)", Parsers("hermes"), Parsers("hermes")),
    Family(
        "hunyuan-a13b",
        r"hunyuan-a13b-instruct",
        Parsers("hunyuan_a13b", "hunyuan_a13b"),
        Parsers("hunyuan", "hunyuan"),
    ),
    Family("lfm2", r"\blfm2", Parsers("lfm2"), Parsers("lfm2")),
)

_NONE = "none"


def find(name: str, model_type: str = "", architecture: str = "") -> Family | None:
    """The family of a model.

    Args:
        name: of the model, e.g. `Qwen/Qwen3-32B`.
        model_type, architecture: as its config.json says them; empty when not known.
    """
    text = f"{name} {model_type} {architecture}".lower()
    found = next((family for family in FAMILIES if re.search(family.pattern, text)), None)
    return None if found is None or found.name == _NONE else found


def arguments(engine: str, family: Family | None, args: Sequence[str]) -> list[str]:
    """What to add to the author's `args`, whose own flags count.

    `--no-enable-auto-tool-choice` and `--reasoning-parser ""` in them keep ours away.
    """
    wanted = _parsers(engine, family)
    ours: list[str] = []
    auto = engine == "vllm" and not _has(args, "enable-auto-tool-choice")
    refused = any(arg.replace("_", "-") == "--no-enable-auto-tool-choice" for arg in args)
    tools = value(args, "tool-call-parser")
    if tools is None and wanted.tools and not refused:
        assert family is not None
        if family.own_template or _has(args, "chat-template"):
            ours += ["--tool-call-parser", wanted.tools]
            tools = wanted.tools
    if tools and auto:  # a parser alone is not used by vLLM
        ours += ["--enable-auto-tool-choice"]
    if wanted.reasoning and value(args, "reasoning-parser") is None:
        ours += ["--reasoning-parser", wanted.reasoning]
    return ours


PATHS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/images/generations": "images",
}


def capabilities(
    engine: str, family: Family | None, args: Sequence[str], paths: Collection[str], *, vision: bool = False
) -> list[str]:
    """What an instance can do that was started with `args`; see `wire.Route.capabilities`.

    Args:
        args: all of them, the author's and ours.
        paths: public ones.
        vision: the model takes images.
    """
    able = [name for path, name in PATHS.items() if path in paths]
    if "chat" not in able and "completions" not in able:
        return able
    if engine in ("vllm", "sglang"):
        able.append("json_schema")
    if "chat" not in able:
        return able
    if value(args, "tool-call-parser") and "--no-enable-auto-tool-choice" not in args:
        able.append("tools")
    if value(args, "reasoning-parser"):
        able.append("reasoning")
    if family is not None and family.name == "gpt-oss":
        able.append("harmony")
    return [*able, "vision"] if vision else able


def value(args: Sequence[str], flag: str) -> str | None:
    """What `args` say of a flag, in any of its spellings; the last word counts. None: nothing."""
    said = None
    for arg, following in pairwise([*args, ""]):
        name, equals, text = arg.partition("=")
        if name.startswith("--") and name[2:].replace("_", "-") == flag:
            said = text if equals else following
    return said


def _has(args: Sequence[str], flag: str) -> bool:
    names = {arg.partition("=")[0][2:].replace("_", "-") for arg in args if arg.startswith("--")}
    return flag in names or f"no-{flag}" in names


def _parsers(engine: str, family: Family | None) -> Parsers:
    if family is None or engine not in ("vllm", "sglang"):
        return Parsers()
    return family.vllm if engine == "vllm" else family.sglang
