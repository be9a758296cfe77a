"""What the gateway reads in an answer and changes there: thoughts under two names, usage hidden."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes.gateway.events import hide_usage, read_usage, read_usage_event, twin_events, twin_reasoning
from chutes.gateway.shapes import Usage

NASTY = [
    '"reasoning":"x"',
    '{"choices":[],"usage":{"prompt_tokens":1}}',
    '\\"usage\\":{\\"prompt_tokens\\":1}',
    "data: {}\n\n",
    "\\",
    '"',
]
NAMES = ["reasoning", "reasoning_content"]
texts = st.sampled_from(NASTY) | st.text(max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**40) | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*NAMES, "delta", "usage", *NASTY]) | texts, inner, max_size=3)
    ),
    max_leaves=6,
)
messages = st.dictionaries(
    st.sampled_from([*NAMES, "content", "role", "tool_calls"]) | texts, values, max_size=4
)
choices = st.fixed_dictionaries(
    {"index": st.integers(0, 3)},
    optional={"delta": messages | values, "message": messages, "logprobs": values},
)
answers = st.dictionaries(texts, values, max_size=3).flatmap(
    lambda others: st.fixed_dictionaries({"choices": st.lists(choices | values, max_size=3)}).map(
        lambda known: others | known
    )
)
spellings = st.sampled_from([(",", ":"), (", ", ": ")])


def dump(value: Any, separators: tuple[str, str] = (",", ":")) -> bytes:
    return json.dumps(value, separators=separators).encode()


def twinned(answer: Any) -> Any:
    """The same by hand."""
    answer = json.loads(json.dumps(answer))
    for choice in answer.get("choices", []):
        for key in ("message", "delta") if isinstance(choice, dict) else ():
            message = choice.get(key)
            if isinstance(message, dict) and len(have := [name for name in NAMES if name in message]) == 1:
                message[NAMES[1 - NAMES.index(have[0])]] = message[have[0]]
    return answer


@given(answers, spellings)
def test_thoughts_go_out_under_both_names_and_nothing_else_changes(answer: Any, separators: tuple[str, str]):
    assert json.loads(twin_reasoning(dump(answer, separators))) == twinned(answer)


@given(st.text(), st.sampled_from(NAMES), st.sampled_from([{}, {"role": "assistant"}, {"content": NASTY[0]}]))
def test_the_thoughts_of_a_stream(text: str, name: str, before: dict):
    event = {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "org/m",
        "choices": [{"index": 0, "delta": {**before, name: text}, "logprobs": None, "finish_reason": None}],
    }  # fmt: skip
    out = twin_events(b"data: %b\n\n" % dump(event))
    assert out.startswith(b"data: ")
    assert out.endswith(b"}\n\n")
    assert json.loads(out[6:]) == twinned(event)
    assert twin_events(out) == out  # both are there already


@given(st.lists(answers, max_size=4))
def test_several_events_at_once(several: list[Any]):
    data = b": hello\n\n" + b"".join(b"data: %b\n\n" % dump(one) for one in several) + b"data: [DONE]\n\n"
    lines = twin_events(data).split(b"\n\n")
    assert (lines[0], lines[-2:]) == (b": hello", [b"data: [DONE]", b""])
    assert [json.loads(line[5:]) for line in lines[1:-2]] == [twinned(one) for one in several]


@given(st.binary(max_size=60).map(lambda noise: b'data: {"choices":[' + noise + b'"reasoning":"x"}]}\n\n'))
def test_what_is_not_json_passes_as_it_is(data: bytes):
    try:
        json.loads(data[6:])
    except ValueError:
        assert twin_events(data) == data


COUNTS = {
    "prompt_tokens": 37,
    "total_tokens": 45,
    "completion_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 5},
}
USAGE = Usage(37, 8, 5)


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"message": {"content": NASTY[1]}}], "usage": COUNTS, "prompt_logprobs": None},
        {"usage": COUNTS, "choices": []},
        {"data": [{"embedding": [0.5] * 20000}], "usage": COUNTS},
        {"usage": COUNTS, "text": ["x" * 9000]},
        {"meta": {"usage": None}, "usage": COUNTS},
        {"usage": COUNTS, "meta": {"usage": {"prompt_tokens": 1}}},
        {"type": "response.completed", "response": {"output": [], "usage": {
            "input_tokens": 37, "output_tokens": 8, "input_tokens_details": {"cached_tokens": 5}}}},
    ],
)  # fmt: skip
def test_the_usage_of_an_answer(answer: dict):
    assert read_usage(dump(answer)) == USAGE
    assert read_usage_event(b"data: {}\n\ndata: %b\n\ndata: [DONE]\n\n" % dump(answer)) == USAGE


def test_the_end_of_a_large_answer_is_enough():
    answer = dump({"data": ["x" * 3_000_000], "usage": COUNTS})
    assert read_usage(answer) == USAGE
    assert read_usage(answer[-400:]) == USAGE
    assert read_usage(dump({"usage": COUNTS, "data": ["x" * 3_000_000]})) is None  # bounded


@given(values)
def test_no_text_and_no_nesting_is_taken_for_usage(value: Any):
    assert read_usage(dump({"text": value, "choices": [{"usage": value}]})) is None


@pytest.mark.parametrize(
    "answer", [b"", b"{}", b"null", b'{"usage":null}', b'{"usage":3}', b'"usage"', b'{"usage":{']
)
def test_no_usage(answer: bytes):
    assert read_usage(answer) is None


def test_a_null_usage_counts_nothing():
    assert read_usage(b'{"usage":{"prompt_tokens":7,"completion_tokens":null}}') == Usage(7, 0, 0)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("ending", [b"\n\n", b"\r\n\r\n"])
def test_the_event_that_only_tells_usage_is_hidden(separators: tuple[str, str], ending: bytes):
    content = b"data: " + dump({"choices": [{"delta": {"content": NASTY[1]}}]}) + ending
    filtered = b"data: " + dump({"choices": [], "prompt_filter_results": []}, separators) + ending
    only = b"data: " + dump({"id": "c", "choices": [], "usage": COUNTS}, separators) + ending
    done = b"data: [DONE]" + ending
    assert hide_usage(content + filtered + only + done) == (content + filtered + done, USAGE)
    assert hide_usage(only) == (b"", USAGE)
    assert hide_usage(content) == (content, None)
    assert hide_usage(filtered) == (filtered, None)
    assert hide_usage(only[:-20]) == (only[:-20], None)  # not whole


@given(st.lists(answers, max_size=4), st.booleans())
def test_hiding_leaves_every_other_event_alone(several: list[Any], told: bool):
    events = [b"data: %b\n\n" % dump(one) for one in several]
    only = b"data: " + dump({"choices": [], "usage": COUNTS}) + b"\n\n"
    out, usage = hide_usage(b"".join([*events, only if told else b"", b"data: [DONE]\n\n"]))
    assert out == b"".join([*events, b"data: [DONE]\n\n"])
    assert usage == (USAGE if told else None)
