"""What the OpenAI SDK can ask of a model, and what it is told; then the bill for it, to the token."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.e2e.conftest import DEPLOY_SECONDS, MODEL
from tests.integration.platform_kit import PlatformKit, until

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."

pytestmark = pytest.mark.timeout(DEPLOY_SECONDS + 600)


@pytest.fixture(scope="module")
def client(kit: PlatformKit) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{kit.url}/v1", api_key=kit.key("sdk"))


class Weather(pydantic.BaseModel):
    """Get the current weather in a given location."""

    location: Literal["Tokyo, Japan", "Paris, France"]
    unit: Literal["celsius", "fahrenheit"]


TOOLS: Any = [openai.pydantic_function_tool(Weather)]
WEATHER: list[Any] = [{"role": "user", "content": "What is the weather in Tokyo?"}]


def test_async(client: openai.OpenAI) -> None:
    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key) as sdk:
            whole, stream = await asyncio.gather(
                sdk.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0),
                sdk.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stream=True),
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return whole.choices[0].message.content or "", "".join(pieces)

    assert asyncio.run(ask()) == (ANSWER, ANSWER)


def test_a_streams_usage_is_shown_only_if_asked_for(client: openai.OpenAI) -> None:
    plain = list(client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in plain)
    *rest, last = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    assert all(chunk.usage is None for chunk in rest)
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (37, 8)


def test_tools(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "Weather"}}
    for choice in ("required", named):
        answer = client.chat.completions.create(
            model=MODEL, messages=WEATHER, temperature=0, max_completion_tokens=200, tools=TOOLS,
            tool_choice=choice,
        )  # fmt: skip
        (call, *_) = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "Weather"
        Weather.model_validate_json(call.function.arguments)


def test_parallel_tools_in_a_stream(client: openai.OpenAI) -> None:
    calls = [{"name": "Weather", "arguments": {"location": place}} for place in ("Tokyo", "Paris")]
    text = "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)
    tools: Any = [{"type": "function", "function": {"name": "Weather"}}]
    with client.chat.completions.stream(
        model=MODEL, messages=WEATHER, temperature=0, tools=tools,
        parallel_tool_calls=True, extra_body={"structured_outputs": {"choice": [text]}},
    ) as stream:  # fmt: skip
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    found = [json.loads(call.function.arguments) for call in choice.message.tool_calls or []]
    assert found == [{"location": "Tokyo"}, {"location": "Paris"}]


def test_a_json_schema(client: openai.OpenAI) -> None:
    class Person(pydantic.BaseModel):
        name: Literal["John", "Jane"]
        age: int

    text: Any = [{"role": "user", "content": "Extract name and age: 'John is 25 years old'"}]
    answer = client.chat.completions.parse(
        model=MODEL, messages=text, temperature=0, max_completion_tokens=60, response_format=Person
    )
    assert answer.choices[0].message.parsed == Person(name="John", age=25)


def test_max_completion_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=3
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_models(client: openai.OpenAI) -> None:
    (listed,) = client.models.list().data
    assert (listed.id, listed.object, listed.owned_by) == (MODEL, "model", "vllm")
    known = listed.model_dump()
    assert known["context_length"] == 8192
    assert known["state"] == "ready"
    assert known["supported_features"] == ["json_mode", "structured_outputs", "tools"]


def test_refusals_are_the_sdks_exceptions(kit: PlatformKit, client: openai.OpenAI) -> None:
    def ask(**changed: Any) -> None:
        client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, **changed})

    with pytest.raises(openai.BadRequestError, match="reasoning_effort") as ours:
        ask(extra_body={"reasoning_effort": "enormous"})
    assert (ours.value.code, ours.value.param) == ("invalid_value", "reasoning_effort")
    with pytest.raises(openai.BadRequestError, match="temperature"):  # the engine's own words
        ask(temperature=-1)
    with pytest.raises(openai.BadRequestError, match="messages"):
        ask(messages="What is the capital of France?")
    with pytest.raises(openai.NotFoundError):
        ask(model="nobody/nothing")

    limited = kit.run("keys", "create", "limited", "--requests-per-minute", "1").stdout.strip()
    sdk = client.with_options(api_key=limited, max_retries=0)
    sdk.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1)
    with pytest.raises(openai.RateLimitError) as refused:
        sdk.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1)
    # Of one request a minute the window lets nothing through until it has been empty for one.
    assert 0 < int(refused.value.response.headers["retry-after"]) <= 120


def test_basic_by_curl(kit: PlatformKit, client: openai.OpenAI) -> None:
    body = json.dumps({"model": MODEL, "messages": QUESTION, "temperature": 0})
    for user in (f"anybody:{client.api_key}", f"{client.api_key}:"):
        done = subprocess.run(
            ["curl", "-sS", "--fail", "-u", user, f"{kit.url}/v1/chat/completions", "-d", body],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["choices"][0]["message"]["content"] == ANSWER


def test_usage_is_what_the_answers_told(kit: PlatformKit, client: openai.OpenAI) -> None:
    sdk = client.with_options(api_key=kit.key("counted"))
    before = kit.metrics()
    told: list[Any] = []
    for _ in range(2):  # the second time the prompt is in the engine's cache
        told.append(sdk.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0).usage)
    told.append(sdk.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=20).usage)
    *_, last = sdk.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    told.append(last.usage)
    pieces = list(sdk.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stream=True))
    assert pieces[-1].usage is None
    told.append(told[0])  # the same question, whose usage this client does not get to see

    prompt = sum(usage.prompt_tokens for usage in told)
    completion = sum(usage.completion_tokens for usage in told)

    def counted() -> dict[str, Any] | None:
        items = kit.json("usage", "--since", "1h", "--by", "key")["items"]
        found = next((item for item in items if item["name"] == "counted"), None)
        return found if found and found["requests"] == len(told) else None

    item = until(counted)
    assert (item["errors"], item["prompt_tokens"], item["completion_tokens"]) == (0, prompt, completion)

    after = kit.metrics()
    for kind, tokens in (("prompt", prompt), ("completion", completion)):
        series = f'chutes_tokens_total{{chute="{MODEL}",kind="{kind}"}}'
        assert after[series] - before[series] == tokens
