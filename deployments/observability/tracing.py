"""OpenTelemetry traces: where a request spends its time, across routers and engines.

Traces are on when the standard variables (OTEL_EXPORTER_OTLP_ENDPOINT and its kin) name a collector. Otherwise every
span is `NO_SPAN`, and no OpenTelemetry module is imported. Spans are per request, never per token.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeAlias

from cluster.otlp import configured, end, resource, warn_of_protocol
from deployments.common.errors import ApiError
from deployments.common.messages import TokenBatch

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

Kind = Literal["INTERNAL", "SERVER"]
Attributes: TypeAlias = Mapping[str, str | int | float | bool | list[str]]


class NoSpan:
    """The span while traces are off; it records nothing."""

    __slots__ = ()
    traceparent = ""
    """The span in W3C Trace Context's format, for a process that continues the trace; empty while traces are off."""

    def child(self, name: str, attributes: Attributes | None = None) -> "NoSpan":
        """Starts a span for a part of this one's work."""
        return self

    def name(self, name: str) -> None:
        """Renames the span."""

    def note(self, attributes: Attributes) -> None:
        """Adds attributes."""

    def event(self, name: str, attributes: Attributes) -> None:
        """Adds an event that happens now."""

    def link(self, other: "Span") -> None:
        """Links a related span, such as the one of the generation that this request joined."""

    def fail(self, reason: str) -> None:
        """Marks the span as failed. reason: its `error.type`."""

    def end(self) -> None:
        """Ends the span. Leaving its `with` block ends it too, as failed if an exception was raised."""

    def __enter__(self) -> "NoSpan":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class RecordedSpan:
    """A recorded OpenTelemetry span. Of an exception it keeps the type only, as the text may quote a prompt."""

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
"""The span of the request or generation that this task works on."""


class Traces:
    """The tracer of one process. A background thread exports spans in batches, and drops them if too many wait."""

    def __init__(self, service: str, instance: str) -> None:
        """service: the service's name, unless the environment gives another. instance: identifies this process."""
        self._provider: TracerProvider | None = None
        self.enabled = configured("TRACES", os.environ)
        if not self.enabled:
            return
        warn_of_protocol("TRACES", os.environ)
        self._provider = _provider(service, instance)
        self._tracer = self._provider.get_tracer("dray")

    def begin(self, name: str, traceparent: str, attributes: Attributes, kind: Kind = "SERVER") -> Span:
        """Starts the first span of this process's part of a trace. traceparent: the parent span; empty: a new trace."""
        if self._provider is None:
            return NO_SPAN
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())
        span = self._tracer.start_span(name, context, SpanKind[kind], attributes)
        return RecordedSpan(self._tracer, span)

    def close(self) -> None:
        """Exports the remaining spans, for at most 2 s."""
        if self._provider is not None:
            end(self._provider.shutdown)


def traceparent_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The `traceparent` header of a request; empty if it has none."""
    return next((value for name, value in headers if name == b"traceparent"), b"").decode("latin-1")


def trace_id(span: Span) -> str:
    """The id of the span's trace, in hexadecimal; empty while traces are off."""
    return span.traceparent[3:35]


async def prefill_and_decode(span: Span, stream: AsyncGenerator[TokenBatch, None]) -> AsyncGenerator[TokenBatch, None]:
    """Passes an engine's tokens on, and records one span until the first token and one from there to the last."""
    phase, generated = span.child("prefill"), 0
    try:
        async for tokens in stream:
            if tokens.ids and not generated:
                phase.note({"gen_ai.usage.cache_read.input_tokens": tokens.cached_tokens})
                phase.end()
                phase = span.child("decode")
            generated += len(tokens.ids)
            if tokens.finish_reason:
                span.note(
                    {"gen_ai.usage.output_tokens": generated, "gen_ai.response.finish_reasons": [tokens.finish_reason]}
                )
                if tokens.finish_reason not in ("stop", "length"):
                    span.fail(tokens.finish_reason)
            yield tokens
    finally:
        phase.note({"gen_ai.usage.output_tokens": generated} if generated else {})
        phase.end()


def _provider(service: str, instance: str) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # Not at exit, where it would wait for a dead collector; `Traces.close` bounds that wait.
    provider = TracerProvider(resource=resource(service, instance), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
