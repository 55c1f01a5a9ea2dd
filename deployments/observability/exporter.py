"""Serves the metrics of all Dray processes in a pod, read from the folder that they share.

Run as `python -m deployments.observability.exporter`.

A router's own /metrics covers only its node, and a request through HAProxy may reach any router; so Prometheus scrapes
this server in each pod instead. It must see the pod's processes, to tell the gauges of the living from those of the
dead.
"""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cluster.launch.environment import METRICS_PORT
from deployments.observability.metrics import METRICS_TYPE, exposition


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answers a GET of any path with the metrics."""
        body = exposition()
        self.send_response(200)
        self.send_header("Content-Type", METRICS_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing: Prometheus scrapes every few seconds."""


def serve(port: int = METRICS_PORT) -> ThreadingHTTPServer:
    """Returns a server that listens on this port of every address. The caller runs and closes it."""
    return ThreadingHTTPServer(("0.0.0.0", port), _Handler)


if __name__ == "__main__":
    serve().serve_forever()
