"""What the `model` of a request, its host and its path mean."""

from __future__ import annotations

import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes import wire
from chutes.gateway.answers import Refusal, model_object
from chutes.gateway.routing import Resolved, Routes


def route(name: str, chute_id: str = "", **more) -> wire.Route:
    paths = {"/generate": "/inner"}
    return wire.Route(chute_id or f"id-{name}", name, paths, [], "ready", "", 1, "vllm", 4096, **more)


ROUTES = Routes(
    [
        route("deepseek-ai/DeepSeek-V3.2", "id-1", aliases=["default", "id-2"], slug="me-deepseek"),
        route("Qwen/Qwen3-32B", "id-2"),
        route("moonshotai/Kimi-K2-Thinking-TEE", "id-3"),
        route("moonshotai/Kimi-K2-Thinking", "id-4"),
        route("local:latency", "id-5"),
        route("chutes/mine", "id-6", slug="me-mine"),
        route("a,b", "id-7"),
    ]
)
DEEPSEEK, QWEN = "deepseek-ai/DeepSeek-V3.2", "Qwen/Qwen3-32B"


def names(found: Resolved | None) -> list[str]:
    return [destination.route.name for destination in found.destinations] if found else []


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (DEEPSEEK, DEEPSEEK),
        ("id-1", DEEPSEEK),
        ("id-2", QWEN),  # an id wins over another's alias
        ("default", DEEPSEEK),
        ("Default", DEEPSEEK),
        ("me-deepseek", DEEPSEEK),
        ("qwen/qwen3-32b", QWEN),
        (f"chutes/{QWEN}", QWEN),
        ("chutes/mine", "chutes/mine"),
        ("a,b", "a,b"),
        # As in the published examples.
        ("deepseek-ai/DeepSeek-V3.2-TEE", DEEPSEEK),
        ("chutes/deepseek-ai/DeepSeek-V3.2-TEE", DEEPSEEK),
        ("moonshotai/Kimi-K2-Thinking-TEE", "moonshotai/Kimi-K2-Thinking-TEE"),
        ("moonshotai/Kimi-K2-Thinking", "moonshotai/Kimi-K2-Thinking"),
        ("local:latency", "local:latency"),
        ("LOCAL:latency", "local:latency"),
    ],
)
def test_one_name(model: str, name: str):
    found = ROUTES.resolve(model)
    assert names(found) == [name]
    assert found is not None
    assert (found.thinking, found.preference) == (False, "")


@pytest.mark.parametrize(
    ("model", "expected", "thinking", "preference"),
    [
        (f"{QWEN}:latency", [QWEN], False, "latency"),
        (f"{QWEN}:Throughput", [QWEN], False, "throughput"),
        (f"{QWEN}:THINKING", [QWEN], True, ""),
        (f"{QWEN}:THINKING:latency", [QWEN], True, "latency"),
        (f"{QWEN}:throughput:THINKING", [QWEN], True, "throughput"),
        ("chutes/deepseek-ai/DeepSeek-V3.2-TEE:THINKING", [DEEPSEEK], True, ""),
        ("local:latency:latency", ["local:latency"], False, "latency"),
        (f"{QWEN},{DEEPSEEK}", [QWEN, DEEPSEEK], False, ""),
        (f" {QWEN} , nobody/nothing ,{DEEPSEEK}:latency", [QWEN, DEEPSEEK], False, "latency"),
        # The published platform loses what stands behind the suffix.
        (f"{QWEN}:THINKING,{DEEPSEEK}", [QWEN, DEEPSEEK], True, ""),
        (f"{QWEN},id-2,,qwen/QWEN3-32b", [QWEN], False, ""),
    ],
)
def test_lists_and_suffixes(model: str, expected: list[str], thinking: bool, preference: str):
    found = ROUTES.resolve(model)
    assert found is not None
    assert (names(found), found.thinking, found.preference) == (expected, thinking, preference)


@pytest.mark.parametrize(
    "model", ["", ",", ":", ":latency", "nobody", f"{QWEN}:fast", f"{QWEN}:", "a, c", "-TEE"]
)
def test_nothing_is_found_where_nothing_is_meant(model: str):
    assert ROUTES.resolve(model) is None


@pytest.mark.parametrize("model", [",".join([QWEN] * 17), "x" * 2001, ":latency" * 300])
def test_lists_are_bounded(model: str):
    with pytest.raises(Refusal) as caught:
        ROUTES.resolve(model)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "too_many_models", "model")
    assert "16" in caught.value.message


@given(st.text(alphabet=":,-/latencyTHINKINGTEEchutes ", max_size=60) | st.text(max_size=40))
def test_no_name_breaks_it(model: str):
    found = ROUTES.resolve(model)
    assert found is None or found.destinations


def test_one_exact_name_is_one_look_up():
    assert min(timeit.repeat(lambda: ROUTES.resolve(QWEN), number=10_000, repeat=5)) / 10_000 < 5e-6
    assert ROUTES.resolve(QWEN) is ROUTES.resolve(QWEN)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"me-deepseek.localhost:8000", DEEPSEEK),
        (b"ME-mine.example.com", "chutes/mine"),
        (b"me-deepseek", None),
        (b"127.0.0.1:8000", None),
        (b"llm.example.com", None),
        (b"", None),
    ],
)
def test_a_slug_as_host(host: bytes, name: str | None):
    found = ROUTES.by_host(host)
    assert (found and found.route.name) == name


def test_a_slug_as_the_first_part_of_a_path():
    found = ROUTES.by_path(b"/me-mine/generate")
    assert found is not None
    destination, rest = found
    assert (destination.route.name, rest, destination.inner[rest]) == ("chutes/mine", b"/generate", b"/inner")
    assert ROUTES.by_path(b"/me-mine") is None
    assert ROUTES.by_path(b"/v1/generate") is None
    assert ROUTES.by_path(b"/") is None
    assert Routes([]).by_path(b"//x") is None


def test_what_the_model_list_says_of_a_model():
    full = route(
        "m",
        capabilities=["chat", "completions", "tools", "json_schema", "reasoning", "vision"],
        aliases=["default"],
        price=wire.Price(0.08, 0.24, 0.04),
    )
    said = model_object(full)
    assert said["supported_features"] == ["json_mode", "structured_outputs", "tools", "reasoning"]
    assert said["input_modalities"] == ["text", "image"]
    assert said["output_modalities"] == ["text"]
    assert said["pricing"] == {"prompt": 0.08, "completion": 0.24, "input_cache_read": 0.04}
    assert said["price"]["input"] == {"usd": 0.08}
    assert said["max_output_length"] == said["context_length"] == 4096
    assert said["aliases"] == ["default"]
    assert model_object(route("m", asleep=True))["state"] == "asleep"
    plain = model_object(route("e", capabilities=["embeddings"]))
    assert (plain["supported_features"], plain["output_modalities"]) == ([], ["embedding"])
    assert plain["max_output_length"] is None
