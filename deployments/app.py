"""The Serve applications that a Serve config names: `deployments.app:router` and `deployments.app:engine`."""

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from cluster.serve_config import ENGINE, ROUTER, EngineArgs
from deployments.engine.encoder.replica import EncoderReplica
from deployments.engine.replica import EngineReplica
from deployments.router import Router


def router(args: dict[str, object]) -> Application:
    """The routers. args: RouterArgs as JSON."""
    return serve.deployment(Router).options(name=ROUTER).bind(args)


class Root:
    """The ingress of an engine application, which Serve requires. It has no replica: routers use the engines' handles.

    If the engines were the ingress, each would listen for HTTP, and they could not have a request router of their own.
    """

    def __init__(self, engines: DeploymentHandle) -> None:
        """engines: their handle, which makes them a part of the application."""


def engine(args: dict[str, object]) -> Application:
    """The replicas of one exact engine. args: EngineArgs as JSON."""
    task = EngineArgs.model_validate(args).model.task
    replica = EngineReplica if task == "generate" else EncoderReplica
    no_replica = {"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1}
    root = serve.deployment(Root).options(name="root", autoscaling_config=no_replica)
    return root.bind(serve.deployment(replica).options(name=ENGINE).bind(args))
