"""What is known of a chute beside its deployment, and outlives its versions: slug, price, aliases."""

from __future__ import annotations

import math
import re
import secrets
import string
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field

from chutes.exception import InvalidSpec
from chutes.wire import Price

FREE = Price()
MAX_ALIASES = 1000
MAX_PRICE = 10_000.0  # dollars per million tokens; beyond it, somebody gave a price per token

# A label of a host name has 63 characters; the published platform keeps 5 of them for a suffix.
SLUG_CHARACTERS = 58
_SUFFIX = string.ascii_lowercase + string.digits
_ALIAS = re.compile(r"[!-~]{1,64}")  # printable ASCII without the space


@dataclass(frozen=True)
class Listing:
    """What clients see of a chute whatever version of it runs."""

    slug: str = ""
    price: Price = FREE
    aliases: list[str] = field(default_factory=list)


def slug(username: str, name: str, taken: Collection[str]) -> str:
    """The published form: `{username}-{name}` in lower-case letters, digits and dashes.

    Args:
        taken: slugs that it must differ from; five random characters see to that.
    """
    plain = unicodedata.normalize("NFKD", f"{username}-{name}").encode("ascii", "ignore").decode().lower()
    wanted = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:SLUG_CHARACTERS].strip("-") or "chute"
    made = wanted
    while made in taken:
        suffix = "".join(secrets.choice(_SUFFIX) for _ in range(5))
        made = f"{wanted[: SLUG_CHARACTERS - 1].rstrip('-')}-{suffix}"
    return made


def alias(text: str) -> str:
    """An alias as it is kept.

    Raises:
        InvalidSpec: it could not be said in a request, where `:` starts a suffix and `,` the next model.
    """
    if not _ALIAS.fullmatch(text) or ":" in text or "," in text:
        raise InvalidSpec(
            f"Alias {text!r} must be 1 to 64 printable ASCII characters without space, colon or comma."
        )
    return text.lower()


def price(prompt: float, completion: float, cached: float | None = None) -> Price:
    """A price per million tokens; cached prompt tokens cost as much as others unless it says otherwise.

    Raises:
        InvalidSpec: one of them is negative, no number or beyond all reason.
    """
    made = Price(prompt, completion, prompt if cached is None else cached)
    for what, value in (("prompt", prompt), ("completion", completion), ("cached", made.cached)):
        if not (math.isfinite(value) and 0 <= value <= MAX_PRICE):
            raise InvalidSpec(
                f"The {what} price must be from 0 to {MAX_PRICE:,.0f} dollars, not {value}.",
                "Prices are US dollars per million tokens, e.g. --prompt 0.2 --completion 0.6.",
            )
    return made
