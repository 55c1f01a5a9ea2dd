"""Dray's calls to Ray Serve. Imports Ray only when called: Ray reads its environment on import."""

import logging
import re
import time
from collections.abc import Iterable
from typing import Any

from cluster.launch.preflight import LaunchError
from cluster.serve_config import PAGE, Engine, Routers, serve_config

_POLL_S = 0.1
_START_ERROR = re.compile(r"\b(?:EngineStartError|NotEnoughCores): (.+)")
"""In the last line of a traceback; the line of source that raised the error has a bracket after the name."""


def start(routers: Routers) -> None:
    """Starts Serve with these routers and their engines, and waits until all serve.

    Raises LaunchError with the reason that a replica gave.
    """
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    settings = routers.settings
    # Routers listen on Serve's host too. Only HAProxies on other machines need to reach them past this one's HAProxy.
    host = settings.host if settings.cluster.head else "127.0.0.1"
    serve.start(
        http_options={"host": host, "port": settings.port},
        logging_config={"enable_access_log": False},
    )
    apply(routers)
    timeout_s = max(engine.model.settings.start_timeout_s for engine in routers.engines)
    deadline = time.monotonic() + timeout_s
    while True:
        # The chat page needs a few seconds more, and no API client should wait for it.
        statuses = [status for name, status in applications().items() if name != PAGE]
        if statuses and all(
            status.status == "RUNNING" or (settings.cluster.head and _has_running_replicas(status))
            for status in statuses
        ):
            return
        reason = next(filter(None, map(failure, statuses)), "")
        if reason or time.monotonic() > deadline:
            raise LaunchError(reason or f"not ready within {timeout_s:.0f} s")
        time.sleep(_POLL_S)


def apply(routers: Routers, engines: Iterable[Engine] | None = None) -> None:
    """Makes Serve run exactly these; replicas that already match keep running. engines: as `serve_config` takes it."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    # What `serve run` does with a config file; no public call takes one.
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(serve_config(routers, engines)))


def applications() -> dict[str, Any]:
    """Serve's status of each application, by name."""
    from ray import serve

    return dict(serve.status().applications)


def _has_running_replicas(application: Any) -> bool:
    """Whether each deployment of the application has a running replica."""
    deployments = [deployment for name, deployment in application.deployments.items() if name != "root"]
    return bool(deployments) and all(deployment.replica_states.get("RUNNING", 0) for deployment in deployments)


def failure(application: Any) -> str:
    """Why the application cannot start, in one line; empty while nothing has failed."""
    for deployment in application.deployments.values():
        if reason := _START_ERROR.search(deployment.message):
            return f"the engine cannot start: {reason[1].strip()}"
    if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
        lines = str(application.message).strip().splitlines()
        return f"the application cannot start: {lines[-1] if lines else application.status}"
    return ""


def one_line(error: Exception) -> str:
    """An error's message for a user. Of a traceback from a Ray task, the last line: the error itself."""
    from ray.exceptions import RayTaskError

    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[-1 if isinstance(error, RayTaskError) else 0].strip()
