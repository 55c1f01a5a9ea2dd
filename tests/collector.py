"""A collector of traces: takes OTLP over HTTP as any other does, and keeps the spans for a test to look at."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Seen:
    """A span that was sent. Times in seconds; parent: its span's id, empty without one; links: traces of others."""

    service: str
    process: str
    trace: str
    id: str
    parent: str
    name: str
    kind: int
    began: float
    ended: float
    failed: bool
    attributes: dict[str, Any]
    events: tuple[str, ...]
    links: tuple[str, ...]


@dataclass
class Collector:
    """What has come. url: where it listens."""

    url: str
    spans: list[Seen] = field(default_factory=list)

    def of(self, trace: str) -> dict[str, Seen]:
        """A trace's spans by name."""
        return {one.name: one for one in self.spans if one.trace == trace}

    def take(self, body: bytes) -> None:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _values(group.resource.attributes)
            self.spans += [
                Seen(
                    resource["service.name"],
                    resource["service.instance.id"],
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
                for scope in group.scope_spans
                for span in scope.spans
            ]


@contextmanager
def collector() -> Iterator[tuple[Collector, ThreadingHTTPServer]]:
    """One that listens, and its server, for a test to shut."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found, server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)
