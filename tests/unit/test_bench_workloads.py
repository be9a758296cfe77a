"""What is asked: exact lengths, nothing twice, the same again for the same salt."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.harness import tokens, workloads
from benchmarks.harness.messages import Ask
from benchmarks.harness.workloads import Wish
from chutes.exception import UsageError

TEMPLATE = 7
"""Tokens that the chat template here adds."""


def pieces(text: str) -> int:
    """A tokenizer that is harder than any: a beginning of sequence, words of up to four letters whole, longer
    ones in pieces, and "to the" as one."""
    count = sum(-(-len(word) // 4) for word in text.split())
    return 1 + count - text.count("to the")


@pytest.fixture(scope="module")
def counted() -> tokens.Tokens:
    return tokens.Tokens(pieces, lambda text: pieces(text) + TEMPLATE)


def body(ask: Ask) -> dict[str, Any]:
    return json.loads(ask.body)


@given(
    lengths=some.lists(some.integers(12, 300), min_size=1, max_size=8),
    seed=some.integers(),
    chat=some.booleans(),
)
def test_lengths_are_exact(lengths: list[int], seed: int, chat: bool) -> None:
    stock = tokens.Tokens(pieces, lambda text: pieces(text) + TEMPLATE)
    count = stock.count_chat if chat else stock.count
    assert count is not None
    assert [count(text) for text in tokens.exact(lengths, Random(seed), stock, chat)] == lengths


def test_only_words_of_one_token_are_drawn(counted: tokens.Tokens) -> None:
    assert counted.words
    assert all(len(word) <= 4 for word in counted.words)
    assert counted.specials == 1


def test_single_words_are_found_in_few_questions() -> None:
    asked: list[str] = []
    words = [f"w{number}" for number in range(400)]

    def count(text: str) -> int:
        asked.append(text)
        return sum(2 if word == "w123" else 1 for word in text.split())

    assert tokens.single(words, count) == [word for word in words[1:] if word != "w123"]
    assert len(asked) < 30


def test_a_prompt_shorter_than_what_is_added_is_refused(counted: tokens.Tokens) -> None:
    with pytest.raises(UsageError, match="adds 8 to every one"):
        tokens.exact([8], Random(0), counted, chat=True)


def test_a_tokenizer_file_counts(tmp_path: Path) -> None:
    vocabulary = {word: number for number, word in enumerate(tokens.WORDS.read_text().split())}
    tokenizer = Tokenizer(models.WordLevel({**vocabulary, "[?]": len(vocabulary)}, unk_token="[?]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = tokens.local(tmp_path)
    (text,) = tokens.exact([33], Random(1), found, chat=False)
    assert found.count(text) == 33
    with pytest.raises(UsageError, match="no tokenizer"):
        tokens.local(tmp_path / "other.json")
    with pytest.raises(UsageError, match="chat template"):
        tokens.exact([33], Random(1), found, chat=True)


def build(
    wish: Wish, counted: tokens.Tokens | None, count: int = 20, salt: str = "s", **more: Any
) -> list[list[Ask]]:
    return workloads.build(wish, count, "0", salt, counted, **more)


def test_random_prompts_are_new_for_each_salt_and_never_twice(counted: tokens.Tokens) -> None:
    wish = Wish(input_tokens=40, output_tokens=9)
    first, again, other = build(wish, counted), build(wish, counted), build(wish, counted, salt="t")
    assert first == again
    texts = [body(talk[0])["prompt"] for talk in [*first, *other]]
    assert len(set(texts)) == 40
    ask = first[3][0]
    assert (ask.number, ask.path, ask.wanted_input_tokens, ask.wanted_output_tokens) == (
        3, "/v1/completions", 40, 9,
    )  # fmt: skip
    assert body(ask) == {
        **{"prompt": texts[3], "max_tokens": 9, "min_tokens": 9, "ignore_eos": True, "temperature": 0.0},
        **{"stream": True, "stream_options": {"include_usage": True}},
    }
    assert pieces(texts[3]) == 40


def test_the_spread_of_lengths(counted: tokens.Tokens) -> None:
    talks = build(Wish(input_tokens=100, output_tokens=50, spread=0.4), counted, 200)
    inputs = [talk[0].wanted_input_tokens or 0 for talk in talks]
    assert min(inputs) >= 60
    assert max(inputs) <= 140
    assert max(inputs) - min(inputs) > 60
    assert all(pieces(body(talk[0])["prompt"]) == talk[0].wanted_input_tokens for talk in talks)


def test_a_trace_says_lengths(counted: tokens.Tokens) -> None:
    talks = build(
        Wish(input_tokens=100, output_tokens=50), counted, 3, lengths=[(20, 5), (None, 6), (30, None)]
    )
    assert [(t[0].wanted_input_tokens, t[0].wanted_output_tokens) for t in talks] == [
        (20, 5),
        (100, 6),
        (30, 50),
    ]


def test_prefixes_are_shared(counted: tokens.Tokens) -> None:
    talks = build(Wish(input_tokens=20, prefix_tokens=50, prefixes=3), counted, 60)
    starts = {" ".join(body(talk[0])["prompt"].split()[:50]) for talk in talks}
    assert len(starts) == 3
    assert len({body(talk[0])["prompt"] for talk in talks}) == 60


def test_conversations_have_turns(counted: tokens.Tokens) -> None:
    talks = build(Wish(kind="turns", turns=3, input_tokens=30), counted, 4)
    assert [[ask.turn for ask in talk] for talk in talks] == [[0, 1, 2]] * 4
    assert [talk[0].conversation for talk in talks] == [0, 1, 2, 3]
    assert [ask.number for talk in talks for ask in talk] == list(range(12))
    assert all(len(body(ask)["messages"]) == 1 for talk in talks for ask in talk)
    # What the answers before it add is not known.
    assert [ask.wanted_input_tokens for ask in talks[0]] == [30, None, None]


def test_real_texts_carry_the_salt_and_end_by_themselves() -> None:
    talks = build(Wish(kind="text", force=False, output_tokens=70), None, 100)
    said = [body(talk[0])["messages"][0]["content"] for talk in talks]
    assert len(set(said)) == 100
    assert all(text.startswith("[s ") for text in said)
    assert "ignore_eos" not in body(talks[0][0])
    assert talks[0][0].wanted_output_tokens is None


def test_a_file_of_prompts_is_asked_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "one", "output_tokens": 4}\n{"prompt": "two"}\n')
    talks = build(Wish(kind="jsonl", file=str(file), output_tokens=9), None, 3)
    assert [body(talk[0])["prompt"] for talk in talks] == ["one", "two", "one"]
    assert [talk[0].wanted_output_tokens for talk in talks] == [4, 9, 4]


def test_sharegpt_keeps_the_lengths_of_answers(tmp_path: Path, counted: tokens.Tokens) -> None:
    said = [
        {"conversations": [{"from": "system", "value": "x"}, {"from": "human", "value": "Why?"},
                           {"from": "gpt", "value": "be so now"}, {"from": "human", "value": "And?"},
                           {"from": "gpt", "value": "no"}]},
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"conversations": []},
    ]  # fmt: skip
    file = tmp_path / "s.json"
    file.write_bytes(msgspec.json.encode(said))
    talks = build(
        Wish(kind="sharegpt", file=str(file), turns=2, output_tokens=5, force=False), counted, 2, salt=""
    )
    by_text = {body(talk[0])["messages"][0]["content"]: talk for talk in talks}
    assert [body(ask)["max_tokens"] for ask in by_text["Why?"]] == [3, 1]
    assert [body(ask)["max_tokens"] for ask in by_text["Hi"]] == [5]


def test_conversations_that_do_not_fit_are_left_out(tmp_path: Path, counted: tokens.Tokens) -> None:
    said = [{"conversations": [{"from": "human", "value": "a " * size}]} for size in (5, 500)]
    file = tmp_path / "s.json"
    file.write_bytes(msgspec.json.encode(said))
    wish = Wish(kind="sharegpt", file=str(file), output_tokens=5, force=False)
    talks = build(wish, counted, 6, longest=200)
    assert {body(talk[0])["messages"][0]["content"].count("a ") for talk in talks} == {5}
    with pytest.raises(UsageError, match="longer than"):
        build(wish, counted, 6, longest=20)


def test_embeddings_and_images(counted: tokens.Tokens) -> None:
    (talk,) = build(Wish(kind="embeddings", input_tokens=25), counted, 1)
    assert talk[0].path == "/v1/embeddings"
    assert pieces(body(talk[0])["input"]) == talk[0].wanted_input_tokens == 25
    assert talk[0].wanted_output_tokens is None
    (talk,) = build(Wish(kind="images", size="512x512", steps=4), None, 1)
    assert talk[0].path == "/v1/images/generations"
    assert body(talk[0])["num_inference_steps"] == 4
    assert body(talk[0])["size"] == "512x512"


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("jsonl", '{"text": "a"}', "line 1 has no text 'prompt'"),
        ("jsonl", "", "empty"),
        ("jsonl", "[", "line 1 is not JSON"),
        ("sharegpt", "{}", "no conversations"),
        ("sharegpt", "[", "not JSON"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path: Path, kind: str, text: str, says: str) -> None:
    file = tmp_path / "f"
    file.write_text(text)
    with pytest.raises(UsageError, match=says):
        build(Wish(kind=kind, file=str(file)), None)
    with pytest.raises(UsageError, match="cannot be read"):
        build(Wish(kind=kind, file=str(tmp_path / "none")), None)


@pytest.mark.parametrize(
    "wish", [Wish(kind="x"), Wish(kind="jsonl"), Wish(input_tokens=0), Wish(spread=1.0), Wish(prefixes=0)]
)
def test_a_wish_that_cannot_be_is_refused(wish: Wish) -> None:
    with pytest.raises(UsageError):
        workloads.check(wish)
