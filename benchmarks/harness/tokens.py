"""Texts of an exact number of tokens, counted by the model's own tokenizer: here, or by asking the engine.

Words are drawn that are one token each behind another word, and every text is counted before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import httpx2

from benchmarks.harness.messages import Address
from chutes.exception import NotFound, UsageError

WORDS = Path(__file__).parents[1] / "data" / "words.txt"
TRIES = 12
"""Corrections of one text. One is rare, two were never seen."""
AT_ONCE = 8
"""Questions to the engine at the same time."""
ASK_SECONDS = 60.0


class Tokens:
    """A tokenizer by what it counts.

    Args:
        count: tokens of a text as `/v1/completions` counts them, special ones included.
        count_chat: of a text as the only message of a chat; None: only the engine knows its template.
    """

    def __init__(self, count: Callable[[str], int], count_chat: Callable[[str], int] | None = None) -> None:
        self.count, self.count_chat = count, count_chat
        self.specials = count("")
        """Tokens that every text gets, as a beginning of sequence."""
        self.words = single(WORDS.read_text().split(), count)
        if len(self.words) < 50:
            raise UsageError(
                f"Only {len(self.words)} of the words here are one token for this model.",
                "Use --workload text, or a file of your own with --workload jsonl.",
            )

    def text(self, length: int, random: Random) -> str:
        return " ".join(random.choices(self.words, k=max(1, length)))


def single(words: list[str], count: Callable[[str], int]) -> list[str]:
    """Those words that are one token each when they stand behind another one.

    Halves a list until what is left of it counts as many tokens as words: few questions where most are.
    """
    first = words[0]
    alone = count(first)
    return [*_single(words[1:], lambda text: count(f"{first} {text}") - alone)]


def _single(words: list[str], count: Callable[[str], int]) -> list[str]:
    if not words or count(" ".join(words)) == len(words):
        return words
    if len(words) == 1:
        return []
    middle = len(words) // 2
    return _single(words[:middle], count) + _single(words[middle:], count)


def exact(lengths: Sequence[int], random: Random, tokens: Tokens, chat: bool) -> list[str]:
    """Random texts that the server counts as exactly so many tokens each, with everything it adds to them.

    Raises:
        UsageError: what the server adds is longer than that, or the template's count is not known.
    """
    count = tokens.count_chat if chat else tokens.count
    if count is None:
        raise UsageError(
            "Only the engine knows what its chat template adds, and this one has no /tokenize.",
            "Use --workload random without --chat, or --workload text.",
        )
    added = count(tokens.words[0]) - 1
    if short := [length for length in lengths if length <= added]:
        raise UsageError(
            f"A prompt of {min(short)} tokens cannot be had: this model adds {added} to every one.",
            f"--input-tokens {added + 16}",
        )
    # Each text has a source of its own: threads that share one would not give the same texts again.
    sources = [Random(random.random()) for _ in lengths]

    def one(length: int, source: Random) -> str:
        return _corrected(length, source.choices(tokens.words, k=length - added), source, tokens.words, count)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, lengths, sources))


def _corrected(
    length: int, words: list[str], random: Random, stock: list[str], count: Callable[[str], int]
) -> str:
    for _ in range(TRIES):
        text = " ".join(words)
        more = length - count(text)
        if not more:
            return text
        words = words + random.choices(stock, k=more) if more > 0 else words[: max(1, len(words) + more)]
    raise UsageError(
        f"No text of exactly {length} tokens was found in {TRIES} tries: this tokenizer joins words.",
        "Use --workload text, or a file of your own with --workload jsonl.",
    )


def local(path: Path) -> Tokens:
    """From a tokenizer.json, or a directory that has one.

    Raises:
        UsageError: it is not there, or the package that reads it is not.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UsageError("Reading a tokenizer needs a package.", "pip install 'chutes[bench]'") from None
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises Exception itself
        raise UsageError(f"{file} is no tokenizer: {error}") from None
    return Tokens(lambda text: len(tokenizer.encode(text).ids))


def remote(address: Address) -> Tokens:
    """By asking a server for `/tokenize`, as vLLM and SGLang have it.

    Raises:
        NotFound: it has none; names what would help.
    """
    scheme = "https" if address.tls else "http"
    host = f"[{address.host}]" if ":" in address.host else address.host
    client = httpx2.Client(
        base_url=f"{scheme}://{host}:{address.port}{address.prefix}",
        headers={"Authorization": f"Bearer {address.key}"} if address.key else {},
        timeout=ASK_SECONDS,
        verify=address.verify,
        trust_env=False,
    )

    def count(body: dict[str, Any]) -> int:
        try:
            answer = client.post("/tokenize", json={"model": address.model, **body})
            return int(answer.raise_for_status().json()["count"])
        except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            raise NotFound(
                f"{address.name} does not count tokens for us (/tokenize: {error}).",
                "Give the model's tokenizer with --tokenizer PATH, or use --workload text.",
            ) from None

    return Tokens(
        lambda text: count({"prompt": text}),
        lambda text: count({"messages": [{"role": "user", "content": text}]}),
    )
