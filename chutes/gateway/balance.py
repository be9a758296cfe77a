"""Which instance of a chute gets a request. Pure: loads in, an index out.

Without anything else to go by, the least loaded. A request with messages goes where its conversation's
KV cache is: consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, arXiv 1608.01350; in
use at Vimeo, HAProxy's `hash-balance-factor`). Each instance has a score for each prefix, the highest owns it
(rendezvous hashing, Thaler and Ravishankar 1998: no ring to keep for a dozen instances, and when one
comes or goes only its own share moves), and an owner that is busier than a bound passes on to the next in the
prefix's order, so a hot prefix warms a second instance and not all.

The other way is to remember which instance had which prefix (SGLang's router keeps a radix tree, the
published platform a table in Redis). It finds partial matches, but is memory to bound, knows nothing
after a restart, and N workers would each have to tell the others. A hash is the same in every worker
without a message, and the loads that it is bounded by are on the board.

A new instance is the least loaded of all and would get every request at once, each with a prompt to
compute and nothing compiled or cached yet: for RAMP_SECONDS it counts as a part of an instance (Envoy's slow
start).
"""

from __future__ import annotations

import zlib
from typing import Final

from chutes.gateway import limits

SEARCHED: Final = limits.PREFIX_SEARCH_BYTES
HASHED: Final = limits.PREFIX_HASH_BYTES
MANY: Final = 1 << 30
LOWEST: Final = -(1 << 63)
"""Of what `hash` returns."""


def choose(
    loads: list[int],
    seeds: list[int],
    prefix: int | None = None,
    turn: int = 0,
    capacity: int | None = None,
    weights: list[float] | None = None,
) -> int | None:
    """The index of the instance that gets a request; None when all are full.

    Args:
        loads: requests in flight on each instance, over all workers (not empty).
        seeds: `seed` of each.
        prefix: `prefix_key` of the request, if it has messages.
        turn: whose turn it is among equals; counts up by one a request, from elsewhere in each worker.
        capacity: requests that one instance takes at once.
        weights: `weight` of each; None when none of them is new.
    """
    if len(loads) == 1:
        return 0 if capacity is None or loads[0] < capacity else None
    if prefix is not None:
        owner = _owner(loads, seeds, prefix, capacity, weights)
        if owner is not None:
            return owner
    index = least_loaded(loads, turn) if weights is None else _lightest(loads, weights, turn)
    if capacity is None or loads[index] < capacity:
        return index
    index = least_loaded(loads, turn)  # the lightest is full, and a new one that weighs more is not
    return index if loads[index] < capacity else None


def least_loaded(loads: list[int], turn: int) -> int:
    """Index of the smallest of `loads` (not empty); among equals, the one whose `turn` it is.

    Without the rotation an idle chute would send everything to its first instance, whose KV cache
    would thrash while the others' stayed cold.
    """
    least = min(loads)
    equals = [index for index, load in enumerate(loads) if load == least]
    return equals[turn % len(equals)]


def seed(instance_id: str) -> int:
    """What stands for an instance in scores. The same in every worker, which `hash` of a text is not."""
    return zlib.crc32(instance_id.encode())


def weight(age: float) -> float:
    """Which part of a whole instance one counts as that has been ready for `age` seconds."""
    return min(1.0, max(limits.RAMP_LEAST, age / limits.RAMP_SECONDS))


def prefix_key(messages: bytes) -> int:
    """A number for what a conversation begins with: the raw JSON of `messages`, or of a `prompt`.

    Every turn of a conversation repeats all before it, so what its requests share with each other, and with
    no other conversation, is what comes before the first answer: the system prompt and the first question.
    The system prompt alone would be too much: each instance soon has it cached anyway, and all that an
    application sends would belong to one instance. A `prompt` has no such mark; its start has to do.

    Hashed are the end of that part and its length; conversations that differ only before that share an
    owner, which does no harm.
    """
    if messages[:1] == b'"':
        return zlib.crc32(messages[:HASHED])
    # A quote inside a text is written \", so this is never found in one.
    answer = messages.find(b'"assistant"', 0, SEARCHED)
    start = messages[: messages.rfind(b"{", 0, answer) if answer >= 0 else SEARCHED].rstrip(b" ,]\r\n\t")
    return zlib.crc32(start[-HASHED:], len(start))


def _owner(
    loads: list[int],
    seeds: list[int],
    prefix: int,
    capacity: int | None,
    weights: list[float] | None,
) -> int | None:
    """The first in the prefix's order that is not busier than its bound; None if all are.

    The mean includes the request in hand; so at least one instance is always below it, and None means that
    those below it are full.
    """
    whole = 1
    for load in loads:
        whole += load
    share = limits.BOUND_FACTOR * whole / (len(loads) if weights is None else sum(weights))
    slack = limits.BOUND_SLACK - 1  # the request in hand counts too
    most = capacity - 1 if capacity is not None else MANY
    best, owner = LOWEST, None
    for index, load in enumerate(loads):
        bound = (share if weights is None else share * weights[index]) + slack
        if load <= bound and load <= most:
            # The same in every process, as the hash of integers has no salt. The product because a
            # tuple's hash alone mixes its last item too little to share prefixes out evenly.
            score = hash((prefix * seeds[index],))
            if score > best:
                best, owner = score, index
    return owner


def _lightest(loads: list[int], weights: list[float], turn: int) -> int:
    """The least loaded for its weight, if it got one more."""
    count = len(loads)
    return min(range(count), key=lambda i: ((loads[i] + 1) / weights[i], (i + turn) % count))
