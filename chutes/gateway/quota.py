"""What a key may use: requests and tokens per minute, and requests at once, over all workers.

The window slides: what counts now is all of this minute and, of the minute before, the share that the last
sixty seconds still cover. Two numbers thus stand for a log of every request (Cloudflare, "How we built rate
limiting capable of scaling to millions of domains", found 0.003 % of requests judged wrongly). It takes the
minute before as evenly used; a key that used all of it in its last second can have up to twice its limit
in some sixty seconds.

Each worker counts in its own row of the board and reads those of the others, so nothing is asked of
anybody; two workers that look in the same microseconds can both take the last place. A minute is
told by the time that is passed in, which must be one clock for all workers: `time.time()`, or Linux's
`time.monotonic()`.

Tokens are known when an answer ends, so they limit when the next request may begin: a key starts nothing
while its tokens are used up, and can overdraw by what it has in flight. Two minutes forget any debt.
"""

from __future__ import annotations

import math
from typing import Final

from chutes import wire
from chutes.board import (
    KEY_CELLS,
    KEY_IN_FLIGHT,
    KEY_SLOTS,
    KEYS_AT,
    MINUTE,
    REQUESTS,
    REQUESTS_BEFORE,
    TOKENS,
    TOKENS_BEFORE,
    Board,
)
from chutes.gateway.answers import Refusal

ROUNDING: Final = 0.01
"""Of a request or token: so that a wait which just suffices is not refused for the last bits of a clock."""


def duration(seconds: int) -> bytes:
    """As OpenAI writes it: `1s`, `6m0s`."""
    return b"%dm%ds" % divmod(seconds, 60) if seconds >= 60 else b"%ds" % seconds


DURATIONS: Final = [duration(seconds) for seconds in range(122)]
"""Until a window of two minutes is empty."""

Numbers = tuple[float, int, int, int, int, int]
"""What a key has used, over all workers: second of the present minute; requests and tokens in it; the same
in the minute before; requests in flight. A plain tuple: to make a named one takes a third of `begin`."""


class _Limits:
    """What one key may use, and where that is counted: read off a `wire.Key` once."""

    __slots__ = ("at", "concurrency", "form", "key", "requests", "tokens")

    def __init__(self, key: wire.Key, slot: int) -> None:
        self.key = key
        self.at = KEYS_AT + slot * KEY_CELLS
        self.requests = _most(key.requests_per_minute)
        self.tokens = _most(key.tokens_per_minute)
        self.concurrency = _most(key.concurrency)
        self.form = b"".join(
            b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %%b\r\n"
            % (what, most, what, what)
            for what, most in ((b"requests", key.requests_per_minute), (b"tokens", key.tokens_per_minute))
            if most is not None
        )
        """Of the header lines; takes what is left and when that will be all, for each of the two."""


def _most(limit: int | None) -> float:
    return math.inf if limit is None else float(limit)


class Quota:
    """The limits of all keys, as one worker enforces them.

    `begin` and `end` must get the same key: a new table may give it another slot in between.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._mine = board.mine
        self._alone = board.alone
        self._known: dict[str, _Limits] = {}
        """By key id; there are no more than slots on the board but for keys that are gone."""

    def begin(self, key: wire.Key, now: float) -> bytes:
        """Count a request in; OpenAI's `x-ratelimit-*` header lines for its answer, each ending in CRLF.

        Raises:
            Refusal: 429, it would exceed a limit; then nothing is counted.
        """
        limits = self._limits(key)
        if limits is None:
            return b""
        use = self._use(limits.at, now)
        second, requests, tokens, requests_before, tokens_before, in_flight = use
        left = 1.0 - second / 60.0  # of the minute before, what the last sixty seconds still cover
        if requests_before * left + requests + 1 > limits.requests + ROUNDING:
            raise _too_many_a_minute(limits, use)
        if tokens_before * left + tokens + 1 > limits.tokens + ROUNDING:
            raise _too_many_a_minute(limits, use)
        if in_flight >= limits.concurrency:
            # Nobody knows when one of them ends.
            most = f"{key.concurrency} requests at once"
            raise _refusal(limits, use, most, "Wait for one of them to end", 1)
        at, mine = limits.at, self._mine
        mine[at + REQUESTS] += 1
        mine[at + KEY_IN_FLIGHT] += 1
        return _headers(limits, (second, requests + 1, tokens, requests_before, tokens_before, in_flight))

    def end(self, key: wire.Key, tokens: int, now: float) -> None:
        """Count a request out that `begin` had counted in, and the tokens that it used."""
        limits = self._limits(key)
        if limits is None:
            return
        at, mine = limits.at, self._mine
        self._roll(at, int(now / 60.0))
        mine[at + TOKENS] += tokens
        mine[at + KEY_IN_FLIGHT] -= 1

    def headers(self, key: wire.Key, now: float) -> bytes:
        """What the header lines of a request would say that is not counted."""
        limits = self._limits(key)
        return _headers(limits, self._use(limits.at, now)) if limits is not None else b""

    def _limits(self, key: wire.Key) -> _Limits | None:
        """None for a key that has none."""
        known = self._known.get(key.key_id)
        if known is not None and known.key is key:
            return known
        slot = key.slot
        if slot is None:
            return None
        if len(self._known) >= KEY_SLOTS:
            self._known.clear()
        self._known[key.key_id] = known = _Limits(key, slot)
        return known

    def _use(self, at: int, now: float) -> Numbers:
        minute = int(now / 60.0)
        mine = self._mine
        if mine[at] != minute:
            self._roll(at, minute)
        if not self._alone:
            return self._use_of_all(at, now, minute)
        _, requests, tokens, requests_before, tokens_before, in_flight = mine[at : at + KEY_CELLS].tolist()
        return now - minute * 60.0, requests, tokens, requests_before, tokens_before, in_flight

    def _use_of_all(self, at: int, now: float, minute: int) -> Numbers:
        """Adds up the rows, each of which may still stand at an earlier minute."""
        requests = tokens = requests_before = tokens_before = in_flight = 0
        for row_minute, r, t, r_before, t_before, flying in self._board.cells(at, KEY_CELLS):
            in_flight += flying
            if row_minute == minute:
                requests, tokens = requests + r, tokens + t
                requests_before, tokens_before = requests_before + r_before, tokens_before + t_before
            elif row_minute == minute - 1:
                requests_before, tokens_before = requests_before + r, tokens_before + t
            elif row_minute == minute + 1:  # its worker has looked at the clock just after ours did
                requests, tokens = requests + r + r_before, tokens + t + t_before
        return now - minute * 60.0, requests, tokens, requests_before, tokens_before, in_flight

    def _roll(self, at: int, minute: int) -> None:
        """Let my cells of a key stand at this minute.

        A minute back happens too: a clock that was read before another one but used after it. Such cells
        stay as they are; those that a clock set back has left far ahead start anew.
        """
        mine = self._mine
        behind = minute - mine[at + MINUTE]
        if behind in (0, -1):
            return
        mine[at + REQUESTS_BEFORE] = mine[at + REQUESTS] if behind == 1 else 0
        mine[at + TOKENS_BEFORE] = mine[at + TOKENS] if behind == 1 else 0
        mine[at + REQUESTS] = mine[at + TOKENS] = 0
        mine[at + MINUTE] = minute


def _too_many_a_minute(limits: _Limits, use: Numbers) -> Refusal:
    """Names the limit that takes longest to be free again."""
    second, requests, tokens, requests_before, tokens_before, _ = use
    waits: list[tuple[int, str]] = []
    if (most := limits.key.requests_per_minute) is not None:
        waits.append((_wait(second, requests, requests_before, most), f"{most} requests per minute"))
    if (most := limits.key.tokens_per_minute) is not None:
        waits.append((_wait(second, tokens, tokens_before, most), f"{most} tokens per minute"))
    wait, limit = max(waits)
    return _refusal(limits, use, limit, f"Try again in {wait} second{'s' if wait > 1 else ''}", max(1, wait))


def _refusal(limits: _Limits, use: Numbers, limit: str, fix: str, wait: int) -> Refusal:
    return Refusal(
        429,
        "rate_limit_exceeded",
        f"This API key has reached its limit of {limit}.",
        f"{fix}, or ask whoever runs this platform for a higher limit.",
        headers=b"Retry-After: %d\r\n%b" % (wait, _headers(limits, use)),
    )


def _wait(second: float, used: int, before: int, most: int) -> int:
    """Whole seconds until one more fits, if nothing else is used until then; 0 or less if it does now."""
    spare = most - 1 - used
    if spare >= 0:  # in this minute, when enough of the one before has left the window
        seconds = (1 - spare / max(before, 1)) * 60 - second
    else:  # in the next one, when enough of what is used now has left it
        seconds = 60 - second + max(0.0, 1 - (most - 1) / max(used, 1)) * 60
    return math.ceil(round(seconds, 6))  # what 75.0000001 means is 75


def _headers(limits: _Limits, use: Numbers) -> bytes:
    second, requests, tokens, requests_before, tokens_before, _ = use
    left = 1.0 - second / 60.0
    of_requests = _left(limits.requests - requests - requests_before * left)
    of_tokens = _left(limits.tokens - tokens - tokens_before * left)
    reset = _reset(second, tokens, tokens_before)
    if of_requests < 0:
        return limits.form % (of_tokens, reset) if of_tokens >= 0 else b""
    if of_tokens < 0:
        return limits.form % (of_requests, _reset(second, requests, requests_before))
    return limits.form % (of_requests, _reset(second, requests, requests_before), of_tokens, reset)


def _left(exactly: float) -> int:
    """Whole ones; -1 where there is no limit."""
    if exactly == math.inf:
        return -1
    return int(exactly + ROUNDING) if exactly > 0.0 else 0


def _reset(second: float, used: int, before: int) -> bytes:
    """ "The time until the rate limit resets to its initial state": until the window holds nothing."""
    return DURATIONS[math.ceil(120.0 - second if used else 60.0 - second if before else 0.0)]
