"""A collector: receives OTLP over HTTP, and keeps spans and log records for a test to read."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class ReceivedSpan:
    """An exported span. start, end: Unix seconds. parent: a span id, or empty. links: trace ids."""

    service: str
    process: str
    trace: str
    id: str
    parent: str
    name: str
    kind: int
    start: float
    end: float
    failed: bool
    attributes: dict[str, Any]
    events: tuple[str, ...]
    links: tuple[str, ...]


@dataclass(frozen=True)
class ReceivedLog:
    """An exported log record. at: Unix seconds."""

    service: str
    process: str
    at: float
    event: str
    body: str
    attributes: dict[str, Any]


@dataclass
class Collector:
    """What was received. url: the address on which the collector listens."""

    url: str
    spans: list[ReceivedSpan] = field(default_factory=list)
    logs: list[ReceivedLog] = field(default_factory=list)

    def of(self, trace: str) -> dict[str, ReceivedSpan]:
        """The spans of a trace, by name."""
        return {span.name: span for span in self.spans if span.trace == trace}

    def take_logs(self, body: bytes) -> None:
        """Adds the log records of an export request."""
        groups = ExportLogsServiceRequest.FromString(body).resource_logs
        self.logs += [
            ReceivedLog(
                *sender,
                record.time_unix_nano / 1e9,
                record.event_name,
                record.body.string_value,
                _values(record.attributes),
            )
            for sender, scopes in ((_sender(group), group.scope_logs) for group in groups)
            for scope in scopes
            for record in scope.log_records
        ]

    def take_spans(self, body: bytes) -> None:
        """Adds the spans of an export request."""
        groups = ExportTraceServiceRequest.FromString(body).resource_spans
        self.spans += [
            ReceivedSpan(
                *sender,
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                span.name,
                span.kind,
                span.start_time_unix_nano / 1e9,
                span.end_time_unix_nano / 1e9,
                span.status.code == 2,
                _values(span.attributes),
                tuple(event.name for event in span.events),
                tuple(link.trace_id.hex() for link in span.links),
            )
            for sender, scopes in ((_sender(group), group.scope_spans) for group in groups)
            for scope in scopes
            for span in scope.spans
        ]


@contextmanager
def collector() -> Iterator[tuple[Collector, ThreadingHTTPServer]]:
    """A collector that listens, and its HTTP server, so that a test can shut it down."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            take = {"/v1/traces": received.take_spans, "/v1/logs": received.take_logs}.get(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if take is not None:
                take(body)
            self.send_response(404 if take is None else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received = Collector(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield received, server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _sender(group: Any) -> tuple[str, str]:
    """The service and the process that sent a group."""
    resource = _values(group.resource.attributes)
    return resource["service.name"], resource["service.instance.id"]


def _values(attributes: Any) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)
