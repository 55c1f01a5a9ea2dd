"""Prepares each worker process of Ray before it imports Ray Serve (ray 2.60)."""

import os
from pathlib import Path

from cluster.launch.import_guard import leave_out_pandas
from cluster.liveness import FOLDER, show_worker_life

WORKER_HOOK = {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "cluster.launch.worker_hook.prepare_worker"}
"""Environment that makes Ray's workers call it first. A runtime environment with a `worker_process_setup_hook` has the
same effect, but prevents Ray from starting workers ahead of need (ray 2.60)."""


def prepare_worker() -> None:
    """Shows the supervisor that this process lives; keeps pandas out, and Serve's servers for calls between replicas
    off addresses that nobody needs."""
    if folder := os.environ.get(FOLDER):
        show_worker_life(Path(folder))
    leave_out_pandas()
    _listen_on_node_address()


def _listen_on_node_address() -> None:
    """Serve opens a gRPC server in each replica on every address, and has no setting for it."""
    from ray._common import tls_utils
    from ray._common.network_utils import build_address
    from ray.util import get_node_ip_address

    add_port = tls_utils.add_port_to_grpc_server

    def add_port_of_node(server: object, address: str) -> int:
        host, _, port = address.rpartition(":")
        # The other replicas call it at the node's address.
        if host == "[::]":
            address = build_address(get_node_ip_address(), port)
        return int(add_port(server, address))

    tls_utils.add_port_to_grpc_server = add_port_of_node
