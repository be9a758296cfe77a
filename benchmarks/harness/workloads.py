"""What is asked. Pure but for reading its files: the same options, seed and salt give the same requests.

Prompts are new in every run unless the salt is given: an engine that has seen a prompt answers from its
prefix cache, and a second run would measure that. The salt is printed and recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from benchmarks.harness.messages import Ask
from benchmarks.harness.tokens import Tokens, exact
from chutes.exception import UsageError

TEXTS = Path(__file__).parents[1] / "data" / "prompts.jsonl"

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
EMBEDDINGS, IMAGES = "/v1/embeddings", "/v1/images/generations"

KINDS = {
    "random": "words of one token each, drawn at random, to an exact length",
    "text": "short real questions that ship with it",
    "jsonl": 'a file of lines {"prompt": …, "output_tokens": …}, as vLLM\'s custom data set',
    "sharegpt": "a file in ShareGPT's format; the answers' lengths are kept",
    "turns": "conversations: each turn is sent with the answers before it",
    "embeddings": "random words for /v1/embeddings",
    "images": "prompts for /v1/images/generations",
}


class Wish(msgspec.Struct, kw_only=True, frozen=True):
    """What the requests are to be like. Goes into the result's config."""

    kind: str = "random"
    chat: bool = False
    """/v1/chat/completions where there is a choice, instead of /v1/completions."""
    input_tokens: int = 256
    output_tokens: int = 128
    spread: float = 0.0
    """0.2: lengths are even over ±20 %."""
    prefix_tokens: int = 0
    """In front of every prompt, besides `input_tokens`."""
    prefixes: int = 1
    """Different ones."""
    turns: int = 1
    """User messages of a conversation."""
    file: str = ""
    force: bool = True
    """Have exactly `output_tokens` generated, whatever the model would say."""
    stream: bool = True
    temperature: float = 0.0
    size: str = "1024x1024"
    """Of images."""
    steps: int = 0
    """Of images; 0: the model's own."""

    @property
    def path(self) -> str:
        if self.kind == "embeddings":
            return EMBEDDINGS
        if self.kind == "images":
            return IMAGES
        return CHAT if self.chat or self.kind in ("text", "sharegpt", "turns") else COMPLETIONS

    @property
    def exact(self) -> bool:
        """Its prompts have lengths in tokens, so that a tokenizer is needed."""
        return self.kind in ("random", "embeddings", "turns") or self.prefix_tokens > 0

    @property
    def generates(self) -> bool:
        return self.path in (CHAT, COMPLETIONS)


def check(wish: Wish) -> None:
    """Raises UsageError: it cannot be asked so; says which option to change."""
    if wish.kind not in KINDS:
        raise UsageError(f"There is no workload {wish.kind!r}.", f"One of {', '.join(KINDS)}.")
    if wish.kind in ("jsonl", "sharegpt") and not wish.file:
        raise UsageError(f"The workload {wish.kind} is a file.", "--file PATH")
    if wish.input_tokens < 1 or wish.output_tokens < 1 or wish.turns < 1 or wish.prefixes < 1:
        raise UsageError("Lengths, turns and prefixes are at least 1.")
    if not 0 <= wish.spread < 1:
        raise UsageError("The spread of lengths is from 0 to below 1.", "--spread 0.2 is ±20 %.")
    if wish.file:
        _stock(wish)


def build(
    wish: Wish,
    count: int,
    seed: str,
    salt: str,
    tokens: Tokens | None,
    lengths: Sequence[tuple[int | None, int | None]] = (),
    longest: int | None = None,
) -> list[list[Ask]]:
    """`count` requests, or conversations of several.

    Args:
        tokens: counts as the model does; needed where `wish.exact`, elsewhere it makes lengths known.
        lengths: input and output tokens of each, as a trace has them; None: as wished.
        longest: tokens of a conversation that the model can take; ShareGPT's that are longer are left out.

    Raises:
        UsageError: a file is not what it should be; a length cannot be had.
    """
    random = Random(f"{seed}:{salt}:{wish.kind}")
    if wish.kind in ("random", "embeddings", "turns"):
        assert tokens is not None
        chosen = _lengths(wish, count * wish.turns, random, lengths)
        talks = _random_talks(wish, chosen, random, tokens)
    else:
        talks = _texts(wish, count, random, salt, tokens, longest)
    if wish.prefix_tokens:
        assert tokens is not None
        pool = [tokens.text(wish.prefix_tokens, random) for _ in range(wish.prefixes)]
        talks = [[(f"{random.choice(pool)} {talk[0][0]}", *talk[0][1:]), *talk[1:]] for talk in talks]
        # Two texts of known lengths need not have the sum of them together: what was wished is not checked.
        talks = [
            [(text, None if place == 0 else i, o) for place, (text, i, o) in enumerate(t)] for t in talks
        ]
    numbers = iter(range(count * max(len(talk) for talk in talks)))
    return [
        [
            Ask(
                number=next(numbers),
                path=wish.path,
                body=_body(wish, text, output),
                wanted_input_tokens=inputs if turn == 0 else None,
                wanted_output_tokens=output if wish.generates and wish.force else None,
                conversation=place if len(talk) > 1 else None,
                turn=turn,
            )
            for turn, (text, inputs, output) in enumerate(talk)
        ]
        for place, talk in enumerate(talks)
    ]


_Turn = tuple[str, int | None, int]
"""Text, its tokens as the server will count them where that is known, tokens of the answer."""


def _random_talks(
    wish: Wish, chosen: list[tuple[int, int]], random: Random, tokens: Tokens
) -> list[list[_Turn]]:
    chat = wish.path == CHAT
    texts = exact([length for length, _ in chosen], random, tokens, chat)
    turns = [(text, length, output) for text, (length, output) in zip(texts, chosen, strict=True)]
    step = wish.turns if wish.kind == "turns" else 1
    return [list(turns[at : at + step]) for at in range(0, len(turns) - step + 1, step)]


def _lengths(
    wish: Wish, count: int, random: Random, given: Sequence[tuple[int | None, int | None]]
) -> list[tuple[int, int]]:
    def one(mean: int) -> int:
        return max(1, round(mean * random.uniform(1 - wish.spread, 1 + wish.spread)))

    chosen = [(one(wish.input_tokens), one(wish.output_tokens)) for _ in range(count)]
    for place, (inputs, outputs) in enumerate(given[:count]):
        chosen[place] = (inputs or chosen[place][0], outputs or chosen[place][1])
    return chosen


def _texts(
    wish: Wish, count: int, random: Random, salt: str, tokens: Tokens | None, longest: int | None
) -> list[list[_Turn]]:
    stock = _stock(wish)
    if wish.kind != "jsonl":  # a file of prompts is asked in its order
        random.shuffle(stock)
    talks: list[list[_Turn]] = []
    too_long = 0
    while len(talks) < count:
        chosen = stock[(len(talks) + too_long) % len(stock)]
        # Only the very lines of a file stay as they are: others may read the same file to compare.
        mark = f"[{salt} {len(talks)}] " if salt and wish.kind != "jsonl" else ""
        talk: list[_Turn] = []
        for text, answer in chosen:
            length = answer if isinstance(answer, int) else None
            if isinstance(answer, str) and tokens is not None:
                length = max(1, tokens.count(answer) - tokens.specials)
            talk.append((mark + text, None, min(length or wish.output_tokens, MAX_OUTPUT)))
            mark = ""
        if wish.kind == "sharegpt" and tokens is not None and longest:
            whole = sum(tokens.count(text) + output + TEMPLATE for text, _, output in talk)
            if whole > longest:
                too_long += 1
                if too_long >= len(stock) and not talks:
                    raise UsageError(f"Every conversation is longer than the model's {longest:,} tokens.")
                continue
        talks.append(talk)
    return talks


def _stock(wish: Wish) -> list[list[tuple[str, Any]]]:
    """What there is to ask: of each conversation its texts, and their answers or the length of these.

    Raises:
        UsageError: the file is not what it should be; names the line.
    """
    if wish.kind == "sharegpt":
        return list(_conversations(Path(wish.file), wish.turns))
    if wish.kind == "jsonl":
        return [[(line["prompt"], line.get("output_tokens"))] for line in _lines(Path(wish.file), "prompt")]
    return [[(line["prompt"], None)] for line in _lines(TEXTS, "prompt")]


TEMPLATE = 32
"""Tokens that a chat template adds to a message, at most."""
MAX_OUTPUT = 1 << 20
"""Tokens of one answer; a file that says more is wrong."""


def _lines(path: Path, field: str) -> Iterator[dict[str, Any]]:
    """Objects of a file of JSON lines that have a text in `field`."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    found = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            document = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(document, dict) or not isinstance(document.get(field), str):
            raise UsageError(f"{path}, line {number} has no text {field!r}.")
        found = True
        yield document
    if not found:
        raise UsageError(f"{path} is empty.")


def _conversations(path: Path, turns: int) -> Iterator[list[tuple[str, str | None]]]:
    """What people said and what was answered, up to `turns` of each; ShareGPT's names or OpenAI's."""
    try:
        content = path.read_bytes()
        stock = msgspec.json.decode(content)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not JSON: {error}", "ShareGPT's files are one list.") from None
    found = False
    for item in stock if isinstance(stock, list) else []:
        said = item.get("conversations") or item.get("messages") or [] if isinstance(item, dict) else []
        talk: list[tuple[str, str | None]] = []
        for message in said:
            who, text = (
                message.get("from") or message.get("role"),
                message.get("value") or message.get("content"),
            )
            if who in ("human", "user") and isinstance(text, str) and len(talk) < turns:
                talk.append((text, None))
            elif who in ("gpt", "assistant") and talk and talk[-1][1] is None and isinstance(text, str):
                talk[-1] = (talk[-1][0], text)
        if talk:
            found = True
            yield talk
    if not found:
        raise UsageError(
            f"{path} has no conversations.",
            'It should be a list of {"conversations": [{"from": "human", "value": …}, …]}.',
        )


def _body(wish: Wish, text: str, output: int) -> bytes:
    """The request without `model`."""
    if wish.path == EMBEDDINGS:
        return msgspec.json.encode({"input": text})
    if wish.path == IMAGES:
        steps = {"num_inference_steps": wish.steps} if wish.steps else {}
        return msgspec.json.encode(
            {"prompt": text, "n": 1, "size": wish.size, "response_format": "b64_json", **steps}
        )
    said = {"messages": [{"role": "user", "content": text}]} if wish.path == CHAT else {"prompt": text}
    body: dict[str, Any] = {**said, "max_tokens": output, "temperature": wish.temperature}
    if wish.force:
        body |= {"min_tokens": output, "ignore_eos": True}
    if wish.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return msgspec.json.encode(body)
