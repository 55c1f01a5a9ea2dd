"""What Dray says to Serve, and what Serve says back. Imports Ray only when called: it reads its environment then."""

import logging
import time
from collections.abc import Iterable
from typing import Any

from cluster.launch.preflight import LaunchError
from cluster.serve_config import PAGE, Engine, Routers, serve_config

_LOOK_S = 0.1


def start(routers: Routers) -> None:
    """Starts Serve with these routers and their engines, and waits until all serve.

    Raises LaunchError with what a replica said.
    """
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    settings = routers.settings
    serve.start(
        http_options={"host": settings.host, "port": settings.port},
        logging_config={"enable_access_log": False},
    )
    apply(routers)
    patience = max(engine.model.settings.start_timeout_s for engine in routers.engines)
    deadline = time.monotonic() + patience
    while True:
        # The chat page comes a few seconds later, and nobody who asks the API is to wait for it.
        seen = [one for name, one in applications().items() if name != PAGE]
        if seen and all(one.status == "RUNNING" or (settings.cluster.head and _begun(one)) for one in seen):
            return
        said = next(filter(None, map(failure, seen)), "")
        if said or time.monotonic() > deadline:
            raise LaunchError(said or f"not ready within {patience:.0f} s")
        time.sleep(_LOOK_S)


def apply(routers: Routers, engines: Iterable[Engine] | None = None) -> None:
    """Makes Serve run just these; what runs already as it should is left alone. engines: as `serve_config` takes it."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    # What `serve run` does with a config file; there is no public call that takes one.
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(serve_config(routers, engines)))


def applications() -> dict[str, Any]:
    """Serve's overview of each application, by name."""
    from ray import serve

    return dict(serve.status().applications)


def _begun(application: Any) -> bool:
    """Whether each of its deployments has a replica that runs."""
    deployments = [one for name, one in application.deployments.items() if name != "root"]
    return bool(deployments) and all(one.replica_states.get("RUNNING", 0) for one in deployments)


def failure(application: Any) -> str:
    """The line in which a replica of the application said why it cannot start; empty while none did."""
    for deployment in application.deployments.values():
        for line in deployment.message.splitlines():
            if "EngineStartError" in line or "NotEnoughCores" in line:
                return f"the engine cannot start: {line.rsplit('Error: ', 1)[-1].strip()}"
    if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
        lines = str(application.message).strip().splitlines()
        return f"the application cannot start: {lines[-1] if lines else application.status}"
    return ""
