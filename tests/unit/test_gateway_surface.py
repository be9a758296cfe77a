"""What the gateway changes in a request: exactly that, whatever the request looks like."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes.gateway.answers import Refusal
from chutes.gateway.surface import peek, rewrite

MODEL = "Qwen/Qwen3-32B"
BOTH = {
    True: {"enable_thinking": True, "thinking": True},
    False: {"enable_thinking": False, "thinking": False},
}

NASTY = [
    '"model":"x"',
    '\\"model\\":\\"x\\"',
    'say {"model": "x", "stream_options": {"include_usage": true}}',
    '"stream":true}',
    "\\",
    '\\"model',
    '"',
    "}{",
]
texts = st.sampled_from(NASTY) | st.text(max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["model", "stream_options", "thinking", *NASTY]) | texts, inner, max_size=3
        )
    ),
    max_leaves=8,
)
OURS = {
    *("model", "stream", "stream_options", "thinking", "reasoning_effort", "response_format"),
    *("chat_template_kwargs",),
}
others = st.dictionaries(texts.filter(lambda key: key not in OURS), values, max_size=4)


@st.composite
def bodies(draw: st.DrawFn, **fields: Any) -> bytes:
    """A body with these fields and others around them, in any order and spelling."""
    items = list((draw(others) | fields).items())
    items = draw(st.permutations(items))
    if draw(st.booleans()):
        items.sort(key=lambda item: item[0] != "model")
    indent, ascii_ = draw(st.sampled_from([None, 1])), draw(st.booleans())
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]))
    text = json.dumps(dict(items), indent=indent, ensure_ascii=ascii_, separators=separators)
    return (draw(st.sampled_from(["", " ", "\n\t"])) + text + draw(st.sampled_from(["", "\r\n "]))).encode(
        errors="replace"
    )


def through(body: bytes | dict, **asked: Any) -> tuple[Any, bool]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    out, shown = rewrite(raw, peek(raw), model=asked.pop("model", MODEL), **asked)
    return json.loads(out), shown


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}], "model": MODEL, **fields}


@given(bodies(model=MODEL))
def test_what_needs_no_change_is_the_same_bytes(body: bytes):
    assert rewrite(body, peek(body), model=MODEL) == (body, False)


@given(bodies(model="other"))
def test_another_name_changes_the_name_and_nothing_else(body: bytes):
    assert through(body) == (json.loads(body) | {"model": MODEL}, False)


@given(
    bodies(model="other", stream=True, messages=[{"content": NASTY[2]}]), st.sampled_from([MODEL, "other"])
)
def test_a_stream_is_asked_for_its_usage(body: bytes, model: str):
    expected = json.loads(body) | {"model": model, "stream_options": {"include_usage": True}}
    assert through(body, model=model) == (expected, False)


@given(
    bodies(model="other", stream=True, thinking={"type": "enabled"}, stream_options={"x": 1}), st.booleans()
)
def test_everything_at_once(body: bytes, suffix: bool):
    expected = json.loads(body)
    del expected["thinking"]
    expected |= {
        "model": MODEL,
        "stream_options": {"x": 1, "include_usage": True},
        "chat_template_kwargs": BOTH[True],
    }
    assert through(body, thinking=suffix) == (expected, False)


@pytest.mark.parametrize(
    ("options", "becomes", "shown"),
    [
        ({"include_usage": True}, {"include_usage": True}, True),
        ({"include_usage": "yes"}, {"include_usage": "yes"}, True),
        ({"include_usage": False}, {"include_usage": True}, False),
        ({"include_usage": None}, {"include_usage": True}, False),
        ({}, {"include_usage": True}, False),
        (None, {"include_usage": True}, False),
        ({"continuous_usage_stats": True}, {"include_usage": True}, False),
        (
            {"include_usage": True, "continuous_usage_stats": True},
            {"include_usage": True, "continuous_usage_stats": True},
            True,
        ),
        (["odd"], ["odd"], False),  # the engine says what is wrong with it
    ],
)
def test_the_wish_for_usage_is_kept(options: Any, becomes: Any, shown: bool):
    assert through(chat(stream=True, stream_options=options)) == (
        chat(stream=True, stream_options=becomes),
        shown,
    )


def test_no_usage_is_asked_for_where_that_is_an_error():
    still = chat(stream=False)
    assert through(still) == (still, False)
    assert through(chat(stream=None)) == (chat(stream=None), False)
    responses = {"model": MODEL, "input": "Hi", "stream": True, "thinking": "mine"}
    assert through(responses, chat=False, completions=False) == (responses, False)
    text = {"model": MODEL, "prompt": "Hi", "stream": True, "reasoning_effort": "odd"}
    asked = text | {"stream_options": {"include_usage": True}}
    assert through(text, chat=False) == (asked, False)


# The published table, to the letter, and what follows from it.
@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({"thinking": {"type": "enabled"}}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": True}, True),
        ({"thinking": False}, False),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "medium"}, True),
        ({"reasoning_effort": "high"}, True),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, False),
        ({"reasoning_effort": "xhigh"}, True),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
    ],
)
@pytest.mark.parametrize("capabilities", [[], ["chat", "reasoning"]])
def test_thinking_becomes_a_template_argument(fields: dict, thinks: bool, capabilities: list[str]):
    out, _ = through(chat(**fields), capabilities=capabilities)
    effort = {"reasoning_effort": fields["reasoning_effort"]} if "reasoning_effort" in fields else {}
    assert out == chat(**effort, chat_template_kwargs=BOTH[thinks])


def test_other_template_arguments_stay_and_the_authors_own_word_wins():
    mine = {"enable_thinking": False, "custom": [1]}
    out, _ = through(chat(chat_template_kwargs=mine, thinking=True, reasoning_effort="high"), thinking=True)
    assert out["chat_template_kwargs"] == mine | {"thinking": False}
    out, _ = through(chat(chat_template_kwargs={"thinking": True}, reasoning_effort="none"))
    assert out["chat_template_kwargs"] == BOTH[True]
    apart = {"enable_thinking": True, "thinking": False}
    assert (
        through(chat(chat_template_kwargs=apart, reasoning_effort="none"))[0]["chat_template_kwargs"] == apart
    )
    out, _ = through(chat(chat_template_kwargs={"custom": 1}))
    assert out == chat(chat_template_kwargs={"custom": 1})
    out, _ = through(chat(chat_template_kwargs=None, reasoning_effort="low"))
    assert out["chat_template_kwargs"] == BOTH[True]


def test_the_suffix_is_the_least_particular_word():
    assert through(chat(), thinking=True)[0] == chat(chat_template_kwargs=BOTH[True])
    assert through(chat(thinking=None), thinking=True)[0] == chat(chat_template_kwargs=BOTH[True])
    out, _ = through(chat(reasoning_effort="none"), thinking=True)
    assert out == chat(reasoning_effort="none", chat_template_kwargs=BOTH[False])


def test_thinking_wins_over_the_effort_which_then_may_not_contradict_it():
    out, _ = through(chat(reasoning_effort="none", thinking=True))
    assert out == chat(chat_template_kwargs=BOTH[True])


@pytest.mark.parametrize(
    ("effort", "sent"), [("none", "low"), ("minimal", "low"), ("medium", "medium"), ("max", "high")]
)
def test_gpt_oss_gets_the_nearest_effort_that_it_knows(effort: str, sent: str):
    out, _ = through(chat(reasoning_effort=effort), capabilities=["harmony"])
    assert out["reasoning_effort"] == sent


def test_nulls_mean_nothing():
    body = chat(reasoning_effort=None, response_format=None, chat_template_kwargs=None)
    assert through(body) == (body, False)
    assert through(body | {"thinking": None}) == (body, False)


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_schema_beside_the_type_is_put_where_engines_enforce_it(kind: str):
    out, _ = through(chat(response_format={"type": kind, "schema": SCHEMA}))
    assert out == chat(
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "response", "schema": SCHEMA, "strict": True},
        }
    )


@pytest.mark.parametrize(
    "own",
    [
        {"type": "json_object"},
        {"type": "json_object", "schema": None},
        {"type": "text", "schema": SCHEMA},
        {"type": "json_schema", "json_schema": {"name": "mine", "schema": SCHEMA}},
        {"type": "json_schema", "json_schema": {"name": "mine"}, "schema": SCHEMA},
        {"schema": SCHEMA},
        "json",
        [],
    ],
)
def test_other_formats_are_the_engines_to_judge(own: Any):
    assert through(chat(response_format=own)) == (chat(response_format=own), False)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reasoning_effort": "huge"}, "none, minimal, low, medium, high, xhigh, max"),
        ({"reasoning_effort": 3}, "low, medium, high"),
        ({"reasoning_effort": ["low"]}, "low, medium, high"),
        ({"thinking": "yes"}, '{"type": "enabled"}'),
        ({"thinking": {"type": "sometimes"}}, '{"type": "enabled"}'),
        ({"thinking": {}}, '{"type": "enabled"}'),
        ({"thinking": 1}, '{"type": "enabled"}'),
        ({"chat_template_kwargs": [1]}, "must be an object"),
        ({"response_format": {"type": "json_object", "schema": "text"}}, "not an object"),
    ],
)
def test_a_value_that_means_nothing_is_refused_with_what_does(fields: dict, said: str):
    with pytest.raises(Refusal) as caught:
        through(chat(**fields))
    refusal = caught.value
    assert (refusal.status, refusal.code, refusal.param) == (400, "invalid_value", next(iter(fields)))
    assert said in json.loads(refusal.body())["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b","messages":[]}',
        b'{"model":"b","messages":[],"model":"b"}',
        b'{"messages":[],"model":"a","mod\\u0065l":"b"}',
        b'{"mod\\u0065l":"b","x":{"model":"b"}}',
        b'{"x":{"model":"b"},"mod\\u0065l":"b"}',
        b'{"model":"b","x":"\\"model","y":["model"]}',
        b'{"model":"a\\u0062"}',
        b'{"model":"b"}',
        b' { "model" : "b" } ',
    ],
)
def test_the_name_that_the_gateway_has_read_is_the_one_that_is_replaced(body: bytes):
    """Also when it stands twice, or is spelled with escapes: an engine takes the last one, as the gateway
    does."""
    before = json.loads(body)
    assert peek(body).model == before["model"]
    assert through(body, model="served")[0] == before | {"model": "served"}


def test_a_long_body_with_the_model_in_its_middle():
    body = {"messages": "x" * 3000, "model": "other", "tools": ["y" * 3000]}
    assert through(body) == (body | {"model": MODEL}, False)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (b"", "invalid_json", "ends too early"),
        (b'\xef\xbb\xbf{"model":"a"}', "invalid_json", "byte order mark"),
        (b'{"model":"a"', "invalid_json", "ends too early (byte 12)"),
        (b'{"model":"a"} x', "invalid_json", "trailing"),
        (b"[]", "invalid_json", "must be a JSON object"),
        (b"{}", "invalid_model", "no 'model'"),
        (b'{"model":3}', "invalid_model", "must be a string"),
        (b'{"model":"\xff"}', "invalid_json", "not UTF-8"),
        (b'{"x":' + b"[" * 100_000, "invalid_json", "nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_refused_without_quoting_it(body: bytes, code: str, said: str):
    with pytest.raises(Refusal) as caught:
        peek(body)
    assert caught.value.code == code
    assert said in caught.value.message


@given(st.binary(max_size=80) | bodies(model="other").map(lambda body: body[:-2] + b'\xff"}'))
def test_garbage_is_refused_and_nothing_else_happens(body: bytes):
    with contextlib.suppress(Refusal):
        rewrite(body, peek(body), model=MODEL, thinking=True)
