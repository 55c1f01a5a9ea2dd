"""Serves the metrics of all Dray processes in a pod, read from the folder that they share.

Run as `python -m deployments.observability.exporter`.

A router's own /metrics shows its node alone, and through HAProxy nobody knows which router answers; Prometheus asks
each pod here instead. It must see the pod's processes, to tell the gauges of the living from those of the dead.
"""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cluster.launch.environment import METRICS_PORT
from deployments.observability.metrics import METRICS_TYPE, exposition


class _Metrics(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """GET of any path."""
        body = exposition()
        self.send_response(200)
        self.send_header("Content-Type", METRICS_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: Prometheus asks every few seconds."""


def serve(port: int = METRICS_PORT) -> ThreadingHTTPServer:
    """A server on this port of every address; run it, and close it."""
    return ThreadingHTTPServer(("0.0.0.0", port), _Metrics)


if __name__ == "__main__":
    serve().serve_forever()
