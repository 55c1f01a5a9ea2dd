"""Traces: what a request spent its time on, over routers and engines, as OpenTelemetry has it.

They are made where the usual variables name a collector (OTEL_EXPORTER_OTLP_ENDPOINT and the others). Where they do
not, every span is the one that notes nothing, and nothing of OpenTelemetry is loaded here. A span is a matter of a
request, never of a token.
"""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeAlias

from deployments.common.errors import ApiError
from deployments.common.messages import TokenBatch

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

log = logging.getLogger("dray.tracing")

Kind = Literal["INTERNAL", "SERVER"]
Attributes: TypeAlias = Mapping[str, str | int | float | bool | list[str]]

_CLOSE_S = 2.0
"""A collector that does not take the last spans within this time does not get them."""
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SPOKEN = "http/protobuf"


class NoSpan:
    """Stands where no trace is made."""

    __slots__ = ()
    traceparent = ""
    """The span as W3C Trace Context writes it, for whoever goes on with its trace; empty: nobody does."""

    def child(self, name: str, attributes: Attributes | None = None) -> "NoSpan":
        """A span of what is a part of this one's work."""
        return self

    def name(self, name: str) -> None:
        """Gives it another name."""

    def note(self, attributes: Attributes) -> None:
        """Adds attributes."""

    def event(self, name: str, attributes: Attributes) -> None:
        """Notes what happened at this moment."""

    def link(self, other: "Span") -> None:
        """Names another span that this one has to do with."""

    def fail(self, reason: str) -> None:
        """Marks it as failed."""

    def end(self) -> None:
        """Ends it. At the end of its context it is ended, as failed where an exception ended that."""

    def __enter__(self) -> "NoSpan":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class RecordedSpan:
    """A span of OpenTelemetry's, with the same methods. Exceptions leave their kind behind: their text may quote a
    prompt."""

    __slots__ = ("_span", "_tracer")

    def __init__(self, tracer: "Tracer", span: "OtelSpan") -> None:
        self._tracer, self._span = tracer, span

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def child(self, name: str, attributes: Attributes | None = None) -> "RecordedSpan":
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(self._span, Context())
        return RecordedSpan(self._tracer, self._tracer.start_span(name, context, attributes=attributes))

    def name(self, name: str) -> None:
        self._span.update_name(name)

    def note(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def event(self, name: str, attributes: Attributes) -> None:
        self._span.add_event(name, attributes)

    def link(self, other: "Span") -> None:
        if isinstance(other, RecordedSpan) and other is not self:
            self._span.add_link(other._span.get_span_context())

    def fail(self, reason: str) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_status(StatusCode.ERROR)
        self._span.set_attribute("error.type", reason)

    def end(self) -> None:
        self._span.end()

    def __enter__(self) -> "RecordedSpan":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            self._span.set_attribute("dray.given_up", True)
        elif error is not None:
            self.fail((isinstance(error, ApiError) and error.body.error.code) or type(error).__name__)
        self.end()


Span = NoSpan | RecordedSpan
NO_SPAN = NoSpan()

current: ContextVar[Span] = ContextVar("span", default=NO_SPAN)
"""The span of the request, or of the generation, that is being worked on."""


class Traces:
    """The spans of one process. They are sent in batches by a thread of its own, and dropped where too many wait."""

    def __init__(self, service: str, instance: str) -> None:
        """service: its name, where the environment gives no other. instance: which of its processes this is."""
        self._provider: TracerProvider | None = None
        self.on = configured(os.environ)
        if not self.on:
            return
        if any(os.environ.get(name, _SPOKEN) != _SPOKEN for name in _PROTOCOLS):
            log.warning("traces are sent as %s, whatever OTEL_EXPORTER_OTLP_PROTOCOL says", _SPOKEN)
        self._provider = _provider(service, instance)
        self._tracer = self._provider.get_tracer("dray")

    def begin(self, name: str, traceparent: str, attributes: Attributes, kind: Kind = "SERVER") -> Span:
        """The first span of this process's part of a trace. traceparent: whose part it is; empty: a new trace."""
        if self._provider is None:
            return NO_SPAN
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())
        span = self._tracer.start_span(name, context, SpanKind[kind], attributes)
        return RecordedSpan(self._tracer, span)

    def close(self) -> None:
        """Sends what is left, if the collector takes it soon."""
        if self._provider is not None:
            # A thread that nobody waits for at the end of the process: the exporter may try again for a long time.
            last = threading.Thread(target=self._provider.shutdown, daemon=True)
            last.start()
            last.join(_CLOSE_S)


def configured(environment: Mapping[str, str]) -> bool:
    """Whether traces are wanted, by OpenTelemetry's variables."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return False
    return any(environment.get(name) for name in _ENDPOINTS)


def header(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The `traceparent` among a request's headers; empty where there is none."""
    return next((value for name, value in headers if name == b"traceparent"), b"").decode("latin-1")


def trace_id(span: Span) -> str:
    """The id of its trace; empty where none is made."""
    return span.traceparent[3:35]


async def prefill_and_decode(span: Span, stream: AsyncGenerator[TokenBatch, None]) -> AsyncGenerator[TokenBatch, None]:
    """An engine's tokens as they come, with a span up to the first of them, and one from there to the last."""
    phase, made = span.child("prefill"), 0
    try:
        async for tokens in stream:
            if tokens.ids and not made:
                phase.note({"gen_ai.usage.cache_read.input_tokens": tokens.cached_tokens})
                phase.end()
                phase = span.child("decode")
            made += len(tokens.ids)
            if tokens.finish_reason:
                span.note(
                    {"gen_ai.usage.output_tokens": made, "gen_ai.response.finish_reasons": [tokens.finish_reason]}
                )
                if tokens.finish_reason not in ("stop", "length"):
                    span.fail(tokens.finish_reason)
            yield tokens
    finally:
        phase.note({"gen_ai.usage.output_tokens": made} if made else {})
        phase.end()


def _provider(service: str, instance: str) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = Resource.create({"service.name": service, "service.instance.id": instance})
    # Not at the end of the process, where it would wait for a dead collector: `close` bounds that.
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
