"""Composes the Serve application: routers in front of engines."""

from typing import Any

from ray import serve

from cluster.models.folder import ServedModel, open_models
from cluster.settings import Settings
from deployments.engine.replica import EngineReplica
from deployments.router import Router


def build(args: dict[str, Any]) -> Any:
    """The application, for `serve.run` and for a Serve config's `import_path: deployments.app:build`.

    args: `settings` (Settings as JSON), `cores` (whole cores of a replica, by the model's name), `redis_url`.
    """
    settings = Settings.model_validate_json(args["settings"])
    engines = [(model, _engines(settings, model, args["cores"][model.name])) for model in open_models(settings)]
    routers = serve.deployment(Router).options(
        name="router",
        num_replicas=settings.router.replicas,
        max_ongoing_requests=settings.router.max_connections,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=30,
        # The router's work is light; a whole core of Ray's would be one fewer for the engines.
        ray_actor_options={"num_cpus": 0},
    )
    return routers.bind(args["settings"], args["redis_url"], engines)


def _engines(settings: Settings, model: ServedModel, cores: int) -> Any:
    limits = settings.limits
    engines = serve.deployment(EngineReplica).options(
        name=f"engine-{model.name}",
        num_replicas=model.settings.replicas,
        max_ongoing_requests=model.settings.max_running + limits.waiting,
        max_queued_requests=limits.waiting,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=limits.request_timeout_s,
        ray_actor_options={"num_cpus": cores},
    )
    return engines.bind(settings.model_dump_json(), model, cores)
