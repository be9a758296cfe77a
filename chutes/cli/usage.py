"""usage: who asked for how much, and what it cost."""

from __future__ import annotations

from chutes import config as settings
from chutes.cli import client, output
from chutes.control.usage_query import UsageItem, UsageView
from chutes.util import times

HEADS = {"chute": "CHUTE", "key": "KEY", "hour": "HOUR (UTC)", "day": "DAY (UTC)", "status": "STATUS"}


def usage(
    since: str, by: str, chute: str | None, key: str | None, page: int, limit: int, as_json: bool
) -> None:
    asked = {"since": since, "by": by, "chute": chute, "key": key, "page": page, "limit": limit}
    answer = client.connect(settings.load()).call(
        "GET", "/usage", **{name: value for name, value in asked.items() if value is not None}
    )
    if as_json:
        output.document(answer)
        return
    view = UsageView.model_validate(answer)
    if not view.total:
        output.note(f"Nothing was asked for since {times.utc(view.since)} UTC.")
        return
    rows = [_row(item) for item in view.items]
    if len(view.items) > 1:
        rows.append(_row(view.sum))
    head = ["REQUESTS", "ERRORS", "PROMPT", "CACHED", "COMPLETION", "TTFT P50", "P95", "MEAN", "USD"]
    output.table([HEADS[view.by], *head], rows)
    shown = view.page * view.limit + len(view.items)
    if shown < view.total:
        output.note(f"{shown} of {view.total}; --page {view.page + 1} goes on, --limit shows more at once.")


def _row(item: UsageItem) -> list[str]:
    return [
        item.name,
        f"{item.requests:,}",
        f"{item.errors:,}",
        f"{item.prompt_tokens:,}",
        f"{item.cached_tokens:,}",
        f"{item.completion_tokens:,}",
        _seconds(item.ttft_p50_seconds),
        _seconds(item.ttft_p95_seconds),
        _seconds(item.mean_seconds),
        f"{item.cost_usd:,.2f}" if item.cost_usd >= 1 or not item.cost_usd else f"{item.cost_usd:.6f}",
    ]


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
