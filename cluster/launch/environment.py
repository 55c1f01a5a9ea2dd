"""The environment variables that Ray and Serve read on import, the same on one machine and in a pod."""

import math
from pathlib import Path

from cluster import node
from cluster.intervals import Intervals
from cluster.launch.haproxy import RECEIVE_TIMEOUT
from cluster.launch.worker_hook import WORKER_HOOK
from cluster.settings import Settings

METRICS_FOLDER, HAPROXY_FOLDER = "metrics", "h"
"""Folders in the state folder. The second name is short, because a node id of 56 characters and a socket's name follow,
and socket paths end at 107 bytes."""
VLLM_NAMES = "--vllm-names"
"""Option of the metrics container, for the setting metrics.vllm_names."""
METRICS_PORT = 9464
"""Port at which a pod exposes the metrics of its own processes."""
OBJECT_STORE_BYTES = 80 * 2**20
"""Size of Ray's shared memory; Dray only sends small objects through it."""


def serve_environment(settings: Settings, haproxy: Path) -> dict[str, str]:
    """The variables. haproxy: the executable that Serve starts for it."""
    proxy, intervals = settings.state_dir / HAPROXY_FOLDER, Intervals.of(settings)
    return {
        # Both or neither: without HAProxy, throughput mode puts the only proxy on the head node.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "m.sock"),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # A router that does not answer twice gets no more requests (Serve's default: every five seconds).
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": f"{1000 * intervals.router_checks:.0f}ms",
        # Serve replaces an HAProxy that fails three times (Serve's default: every ten seconds).
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": f"{intervals.proxy_checks:g}",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5",
        # How long a stopping router stays reachable, until HAProxy knows (Serve's default: 30 s). A request that it
        # refuses after that is retried by HAProxy at another router.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
        # Serve's controller looks whether what should run does (Serve's default: every 0.1 s, a twentieth of a core).
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": f"{intervals.control_loop:g}",
        # Of what nothing reads: how often Serve's own metrics of requests, event loops and HAProxy are updated (Serve's
        # defaults: every 0.1 s in each replica and each of its handles, 5 s, 10 s).
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
        "RAY_SERVE_EVENT_LOOP_MONITORING_INTERVAL_S": "3600",
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # Cache hits are answered before Serve's own work on a request (deployments.api.fast_path).
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.api.fast_path:middlewares",
        "RAY_SERVE_HAPROXY_MAXCONN": str(settings.router.max_connections),
        # For clients that stop reading, or sending a body. One that waits for its answer is not cut off.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(math.ceil(settings.limits.client_stall_s)),
        # In one form, whether the value is the default or was validated: another text would replace a whole RayCluster.
        RECEIVE_TIMEOUT: f"{settings.limits.receive_timeout_s:g}",
        # Of each log file of Ray, Serve and Dray's own processes: at most this size, and this many older ones.
        "RAY_ROTATION_MAX_BYTES": str(10 * 2**20),
        "RAY_ROTATION_BACKUP_COUNT": "2",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's own metrics and its record of tasks: nothing reads them, and they take a port and time on every node.
        "RAY_enable_metrics_collection": "0",
        "RAY_task_events_report_interval_ms": "0",
        # Statistics about event loops, which every Ray process writes into its log: hourly, not once a minute.
        "RAY_event_stats_print_interval_ms": "3600000",
        # The same for the state that the raylet dumps into a file (Ray's default: every ten seconds, 200 MB a day).
        "RAY_debug_dump_period_milliseconds": "3600000",
        # How often the raylet looks after things that hardly change in Dray, where workers live long and share no large
        # objects: free memory (Ray's default: every 0.25 s), the disk, idle workers, objects (0.1 to 0.2 s).
        "RAY_memory_monitor_refresh_ms": "1000",
        "RAY_local_fs_monitor_interval_ms": "10000",
        "RAY_kill_idle_workers_interval_ms": "1000",
        "RAY_object_manager_timer_freq_ms": "1000",
        "RAY_raylet_check_gc_period_milliseconds": "1000",
        # And how often it tells the GCS which resources are free (Ray's default: 0.1 s).
        "RAY_raylet_report_resources_period_milliseconds": "300",
        # Every Dray process of this node writes its metrics here, so that any of them can expose all.
        "PROMETHEUS_MULTIPROC_DIR": str(settings.state_dir / METRICS_FOLDER),
        "TRANSFORMERS_VERBOSITY": "error",
        **node.environment(settings),
        **WORKER_HOOK,
    }
