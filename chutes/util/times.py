"""Points in time as people write them: `24h`, `30d`, `2026-12-31`, `2026-12-31T18:00`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from chutes.exception import UsageError

_SPAN = re.compile(r"(\d{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def span(text: str) -> float | None:
    """Seconds of `90s`, `15m`, `24h`, `30d`, `2w`; None when it is not of that form."""
    match = _SPAN.fullmatch(text.strip())
    return int(match[1]) * float(_SECONDS[match[2]]) if match else None


def before(text: str, now: float) -> float:
    """Unix seconds of `24h` (ago) or of a date's first moment. Raises UsageError."""
    ago = span(text)
    return now - ago if ago is not None else _moment(text, "since").timestamp()


def after(text: str, now: float) -> float:
    """Unix seconds of `30d` (from now) or of a date's last moment. Raises UsageError."""
    ahead = span(text)
    if ahead is not None:
        return now + ahead
    moment = _moment(text, "until")
    return (moment + timedelta(days=1) if _DATE.fullmatch(text.strip()) else moment).timestamp()


def _moment(text: str, what: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
        if not 1971 <= moment.year <= 9998:  # `timestamp` and a day more must not overflow
            raise ValueError
    except ValueError:
        raise UsageError(
            f"{text!r} is not a point in time ({what} when).",
            "Write a span (90s, 15m, 24h, 30d, 2w) or a date (2026-12-31, or 2026-12-31T18:00, UTC).",
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def utc(seconds: float) -> str:
    """`2026-12-31 18:00` in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
