"""What Ray and Serve read from the environment when they are imported, on one machine and in a pod alike."""

from pathlib import Path

from cluster import node
from cluster.launch.import_guard import WITHOUT_PANDAS
from cluster.settings import Settings

METRICS_FOLDER, HAPROXY_FOLDER = "metrics", "h"
"""Below the state folder; the second is short: a node id of 56 characters and a socket's name follow, and paths end at
107."""
METRICS_PORT = 9464
"""Where a pod shows the metrics of its own processes."""
OBJECT_STORE_BYTES = 80 * 2**20
"""Ray's shared memory: what crosses it here is small."""


def serve_environment(settings: Settings, haproxy: Path) -> dict[str, str]:
    """The variables. haproxy: the executable that Serve starts for it."""
    proxy = settings.state_dir / HAPROXY_FOLDER
    return {
        # Without HAProxy, throughput mode puts the only proxy on the head node; both, or neither.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "m.sock"),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # A router that does not answer for two seconds gets no more requests (Serve's default is ten).
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
        # How long a router that goes stays reachable, until HAProxy has heard of it (Serve's default is 30 s). HAProxy
        # tries again elsewhere what is refused after that.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
        # Replicas report to the autoscaling policy every second, and not every ten.
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        # What is known is answered in front of Serve's own work on a request (deployments.api.fast_path).
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.api.fast_path:middlewares",
        "RAY_SERVE_HAPROXY_MAXCONN": str(settings.router.max_connections),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Every Dray process of this node writes its metrics here, so that any of them can show all.
        "PROMETHEUS_MULTIPROC_DIR": str(settings.state_dir / METRICS_FOLDER),
        "TRANSFORMERS_VERBOSITY": "error",
        **node.environment(settings),
        **WITHOUT_PANDAS,
    }
