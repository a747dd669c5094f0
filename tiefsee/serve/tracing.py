"""One OpenTelemetry span per request, for those who want it (`pip install 'tiefsee[otel]'`, `--otel`).

Names are those of the semantic conventions for HTTP servers and generative AI. A `traceparent` header makes the
span a child of the client's. Where spans go is the SDK's business: OTEL_EXPORTER_OTLP_ENDPOINT and its kin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tiefsee.errors import ConfigError


class Span(Protocol):
    """What is told of one request when it is over."""

    def end(self, status: int, attributes: Mapping[str, Any]) -> None: ...


class Tracer(Protocol):
    def start(self, name: str, headers: Mapping[bytes, bytes], attributes: Mapping[str, Any]) -> Span: ...


class NoSpan:
    def end(self, status: int, attributes: Mapping[str, Any]) -> None:
        pass


class NoTracer:
    """Spans that cost nothing."""

    _span = NoSpan()

    def start(self, name: str, headers: Mapping[bytes, bytes], attributes: Mapping[str, Any]) -> Span:
        return self._span


class OpenTelemetry:
    """Spans of a TracerProvider; None means one that exports by OTLP as the environment says."""

    def __init__(self, provider: Any = None) -> None:
        try:
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError("--otel needs OpenTelemetry; pip install 'tiefsee[otel]'") from error
        self._propagator = TraceContextTextMapPropagator()
        self._tracer = (provider or _usual_provider()).get_tracer("tiefsee")

    def start(self, name: str, headers: Mapping[bytes, bytes], attributes: Mapping[str, Any]) -> Span:
        from opentelemetry.trace import SpanKind

        parent = {
            k: headers[k.encode()].decode("latin-1") for k in ("traceparent", "tracestate") if k.encode() in headers
        }
        context = self._propagator.extract(parent)
        return _Span(self._tracer.start_span(name, context, SpanKind.SERVER, attributes))


class _Span:
    def __init__(self, span: Any) -> None:
        self._span = span

    def end(self, status: int, attributes: Mapping[str, Any]) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("http.response.status_code", status)
        self._span.set_attributes(dict(attributes))
        if status >= 500 or status == 0:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def _usual_provider() -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "tiefsee"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
