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

import functools
import math

from chutes import wire
from chutes.board import (
    KEY_CELLS,
    KEY_IN_FLIGHT,
    KEYS_AT,
    MINUTE,
    REQUESTS,
    REQUESTS_BEFORE,
    TOKENS,
    TOKENS_BEFORE,
    Board,
)
from chutes.gateway.answers import Refusal

ROUNDING = 0.01
"""Of a request or token: so that a wait which just suffices is not refused for the last bits of a clock."""


def duration(seconds: int) -> bytes:
    """As OpenAI writes it: `1s`, `6m0s`."""
    return b"%dm%ds" % divmod(seconds, 60) if seconds >= 60 else b"%ds" % seconds


DURATIONS = [duration(seconds) for seconds in range(122)]
"""Until a window of two minutes is empty."""

Numbers = tuple[float, int, int, int, int, int]
"""What a key has used, over all workers: second of the present minute; requests and tokens in it; the same
in the minute before; requests in flight. A plain tuple: to make a named one takes a third of `begin`."""


class Quota:
    """The limits of all keys, as one worker enforces them.

    `begin` and `end` must get the same key: a new table may give it another slot in between.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._mine = board.mine

    def begin(self, key: wire.Key, now: float) -> bytes:
        """Count a request in; OpenAI's `x-ratelimit-*` header lines for its answer, each ending in CRLF.

        Raises:
            Refusal: 429, it would exceed a limit; then nothing is counted.
        """
        if key.slot is None:
            return b""
        use = self._use(key.slot, now)
        second, requests, tokens, requests_before, tokens_before, in_flight = use
        left = 1.0 - second / 60.0  # of the minute before, what the last sixty seconds still cover
        most = key.requests_per_minute
        if most is not None and requests_before * left + requests + 1 > most + ROUNDING:
            raise _too_many_a_minute(key, use)
        most = key.tokens_per_minute
        if most is not None and tokens_before * left + tokens + 1 > most + ROUNDING:
            raise _too_many_a_minute(key, use)
        most = key.concurrency
        if most is not None and in_flight >= most:
            # Nobody knows when one of them ends.
            raise _refusal(key, use, f"{most} requests at once", "Wait for one of them to end", 1)
        at = KEYS_AT + key.slot * KEY_CELLS
        mine = self._mine
        mine[at + REQUESTS] += 1
        mine[at + KEY_IN_FLIGHT] += 1
        return _headers(key, (second, requests + 1, tokens, requests_before, tokens_before, in_flight))

    def end(self, key: wire.Key, tokens: int, now: float) -> None:
        """Count a request out that `begin` had counted in, and the tokens that it used."""
        if key.slot is None:
            return
        at = KEYS_AT + key.slot * KEY_CELLS
        mine = self._mine
        self._roll(at, int(now // 60))
        mine[at + TOKENS] += tokens
        mine[at + KEY_IN_FLIGHT] -= 1

    def _use(self, slot: int, now: float) -> Numbers:
        at = KEYS_AT + slot * KEY_CELLS
        minute = int(now // 60)
        if self._mine[at] != minute:
            self._roll(at, minute)
        if not self._board.alone:
            return self._use_of_all(at, now, minute)
        _, requests, tokens, requests_before, tokens_before, in_flight = self._mine[
            at : at + KEY_CELLS
        ].tolist()
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


def _too_many_a_minute(key: wire.Key, use: Numbers) -> Refusal:
    """Names the limit that takes longest to be free again."""
    second, requests, tokens, requests_before, tokens_before, _ = use
    waits: list[tuple[int, str]] = []
    if (most := key.requests_per_minute) is not None:
        waits.append((_wait(second, requests, requests_before, most), f"{most} requests per minute"))
    if (most := key.tokens_per_minute) is not None:
        waits.append((_wait(second, tokens, tokens_before, most), f"{most} tokens per minute"))
    wait, limit = max(waits)
    return _refusal(key, use, limit, f"Try again in {wait} second{'s' if wait > 1 else ''}", max(1, wait))


def _refusal(key: wire.Key, use: Numbers, limit: str, fix: str, wait: int) -> Refusal:
    return Refusal(
        429,
        "rate_limit_exceeded",
        f"This API key has reached its limit of {limit}.",
        f"{fix}, or ask whoever runs this platform for a higher limit.",
        headers=b"Retry-After: %d\r\n%b" % (wait, _headers(key, use)),
    )


def _wait(second: float, used: int, before: int, most: int) -> int:
    """Whole seconds until one more fits, if nothing else is used until then; 0 or less if it does now."""
    spare = most - 1 - used
    if spare >= 0:  # in this minute, when enough of the one before has left the window
        seconds = (1 - spare / max(before, 1)) * 60 - second
    else:  # in the next one, when enough of what is used now has left it
        seconds = 60 - second + max(0.0, 1 - (most - 1) / max(used, 1)) * 60
    return math.ceil(round(seconds, 6))  # what 75.0000001 means is 75


def _headers(key: wire.Key, use: Numbers) -> bytes:
    second, requests, tokens, requests_before, tokens_before, _ = use
    left = 1.0 - second / 60.0
    values: tuple[int | bytes, ...] = ()
    if (most := key.requests_per_minute) is not None:
        values = _left(most - requests - requests_before * left), _reset(second, requests, requests_before)
    if (most := key.tokens_per_minute) is not None:
        values += _left(most - tokens - tokens_before * left), _reset(second, tokens, tokens_before)
    return _form(key.requests_per_minute, key.tokens_per_minute) % values


@functools.lru_cache(maxsize=1024)  # one entry for each pair of limits that some key has
def _form(requests: int | None, tokens: int | None) -> bytes:
    return b"".join(
        b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %%b\r\n"
        % (what, most, what, what)
        for what, most in ((b"requests", requests), (b"tokens", tokens))
        if most is not None
    )


def _left(exactly: float) -> int:
    return int(exactly + ROUNDING) if exactly > 0 else 0


def _reset(second: float, used: int, before: int) -> bytes:
    """ "The time until the rate limit resets to its initial state": until the window holds nothing."""
    return DURATIONS[math.ceil(120.0 - second if used else 60.0 - second if before else 0.0)]
