"""The Serve applications that a Serve config names: `deployments.app:router` and `deployments.app:engine`."""

from typing import Any

from ray import serve

from cluster.serve_config import ENGINE, ROUTER
from deployments.engine.embedder import EmbedderReplica
from deployments.engine.replica import EngineReplica
from deployments.router import Router


def router(args: dict[str, Any]) -> Any:
    """The routers. args: RouterArgs as JSON has them."""
    return serve.deployment(Router).options(name=ROUTER).bind(args)


class Root:
    """What Serve takes for an engine application's ingress. It has no replica: engines are asked through handles only.

    Were the engines the ingress, each would listen for HTTP, and none could have a request router of its own.
    """

    def __init__(self, engines: Any) -> None:
        """engines: their handle, which makes them a part of the application."""


def engine(args: dict[str, Any]) -> Any:
    """The replicas of one exact engine. args: EngineArgs as JSON has them."""
    replica = EmbedderReplica if args["model"]["task"] == "embed" else EngineReplica
    none = {"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1}
    root = serve.deployment(Root).options(name="root", autoscaling_config=none)
    return root.bind(serve.deployment(replica).options(name=ENGINE).bind(args))
