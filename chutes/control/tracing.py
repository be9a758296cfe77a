"""A span for every request, sent to an OpenTelemetry collector: the extra `chutes[otel]`.

Made from the records of requests that have ended, so that the gateway pays nothing for it; a span
therefore stands alone and does not continue its caller's trace. Attributes have the names of
OpenTelemetry's conventions for HTTP servers and generative AI where those have one. What the SDK reads
from the environment (OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER, …) holds here too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chutes.exception import NotConfigured
from chutes.wire import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

STANDARD = "OTEL_EXPORTER_OTLP_ENDPOINT"
FIX = "Install it: pip install 'chutes[otel]'"
# A span takes some 40 µs of the thread that meters. Of a busier moment than this many in one batch, the
# first ones are traced; OTEL_TRACES_SAMPLER=traceidratio is the way to an even share.
MOST_AT_ONCE = 1000
MOST_WAITING = 8192

_OPERATIONS = {"chat/completions": "chat", "completions": "text_completion", "embeddings": "embeddings"}


class Tracing:
    """Spans on their way to a collector."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        self._provider = provider
        self._tracer = provider.get_tracer("chutes.gateway")
        self._kind = SpanKind.SERVER
        self._error = Status(StatusCode.ERROR)

    def export(self, records: Sequence[Record]) -> None:
        """Queue a span for each. Called from one thread; the sending is another's."""
        for record in records[:MOST_AT_ONCE]:
            began = int(record.started * 1e9)
            operation = operation_of(record.path)
            span = self._tracer.start_span(
                f"{operation} {record.model}".rstrip() if operation else f"{record.method} {record.path}",
                kind=self._kind,
                start_time=began,
                attributes=attributes(record),
            )
            if record.first:
                span.add_event("first byte", timestamp=began + int(record.first * 1e9))
            if record.status >= 500 or record.error:
                span.set_status(self._error)
            span.end(began + int(record.duration * 1e9))

    def close(self) -> None:
        """Send what waits; blocks for some seconds at most."""
        self._provider.shutdown()


def start(endpoint: str) -> Tracing | None:
    """Tracing to a collector, if one is configured.

    Args:
        endpoint: the collector's base URL; empty: what OpenTelemetry's own variable says.

    Raises:
        NotConfigured: an endpoint was given and the extra is not installed. (The standard variable alone
            only makes a line in the log: it may be meant for other programs.)
    """
    if not endpoint and not os.environ.get(STANDARD):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        if endpoint:
            raise NotConfigured(
                "CHUTES_OTEL_ENDPOINT is set, but OpenTelemetry is not installed.",
                f"{FIX}, or unset it.",
            ) from None
        log.warning(
            "%s is set, but requests are not traced: OpenTelemetry is not installed. %s", STANDARD, FIX
        )
        return None
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None)
    name = os.environ.get("OTEL_SERVICE_NAME", "chutes")
    provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=MOST_WAITING))
    return Tracing(provider)


def operation_of(path: str) -> str:
    """`gen_ai.operation.name` of a path; empty for others than inference."""
    return _OPERATIONS.get(path.strip("/").removeprefix("v1/"), "")


def attributes(record: Record) -> dict[str, Any]:
    """What a span says of a request."""
    said: dict[str, Any] = {
        "http.request.method": record.method,
        "url.path": record.path,
        "http.response.status_code": record.status,
        "error.type": record.error or (str(record.status) if record.status >= 500 else ""),
        "gen_ai.operation.name": operation_of(record.path),
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "chutes.request.id": record.request_id,
        "chutes.key.id": record.key_id,
        "chutes.chute.id": record.chute_id,
        "chutes.instance.id": record.instance_id,
        "chutes.stream": record.stream,
        "chutes.queue.seconds": record.queued,
        "chutes.first_byte.seconds": record.first,
        "chutes.retries": record.retries,
    }
    return {name: value for name, value in said.items() if value != ""}
