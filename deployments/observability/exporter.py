"""Serves the metrics of all Dray processes in a pod, read from the folder that they share, and kills those that hang.

Run as `python -m deployments.observability.exporter`; with `--vllm-names`, under the names of vLLM too.

A router's own /metrics covers only its node, and a request through HAProxy may reach any router; so Prometheus scrapes
this server in each pod instead. It must see the pod's processes, to tell the gauges of the living from those of the
dead.
"""

import os
import socket
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cluster.child import obey_sigterm
from cluster.launch.environment import METRICS_PORT, VLLM_NAMES
from cluster.launch.watch import killing_hung_processes
from cluster.liveness import FOLDER
from deployments.observability.metrics import METRICS_TYPE, exposition


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, *connection: Any, vllm_names: bool) -> None:
        self._vllm_names = vllm_names
        super().__init__(*connection)  # answers the request

    def do_GET(self) -> None:
        """Answers a GET of any path with the metrics."""
        body = exposition(vllm_names=self._vllm_names)
        self.send_response(200)
        self.send_header("Content-Type", METRICS_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing: Prometheus scrapes every few seconds."""


class _Server(ThreadingHTTPServer):
    """Listens on every IPv6 and IPv4 address, or on IPv4 alone where the kernel has nothing else."""

    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def server_bind(self) -> None:
        """Binds the socket for both families."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def serve(port: int = METRICS_PORT, *, vllm_names: bool = False) -> ThreadingHTTPServer:
    """Returns a server that listens on this port of every address. The caller runs and closes it."""
    return _Server(("", port), partial(_Handler, vllm_names=vllm_names))


def main(port: int = METRICS_PORT) -> None:
    """Serves until the process is ended."""
    obey_sigterm()
    server = serve(port, vllm_names=VLLM_NAMES in sys.argv[1:])
    with killing_hung_processes(Path(os.environ[FOLDER])), server:
        server.serve_forever()


if __name__ == "__main__":
    main()
