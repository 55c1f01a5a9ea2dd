"""The Serve applications that a Serve config names: `deployments.app:router` and `deployments.app:engine`."""

from typing import Any

from ray import serve

from cluster.serve_config import ENGINE, ROUTER
from deployments.engine.replica import EngineReplica
from deployments.router import Router


def router(args: dict[str, Any]) -> Any:
    """The routers. args: RouterArgs as JSON has them."""
    return serve.deployment(Router).options(name=ROUTER).bind(args)


def engine(args: dict[str, Any]) -> Any:
    """The replicas of one exact engine. args: EngineArgs as JSON has them."""
    return serve.deployment(EngineReplica).options(name=ENGINE).bind(args)
