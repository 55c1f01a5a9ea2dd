"""Composes the Serve application: routers in front of engines."""

from typing import Any

from ray import serve

from cluster.models.folder import ServedModel, open_models
from cluster.settings import Settings
from deployments.engine.replica import EngineReplica
from deployments.router import Router

_LEAST_LOOK_BACK_S = 10.5
"""Serve wants to look back for longer than the 10 s between two reports."""


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


def _scale(model: ServedModel) -> dict[str, Any]:
    replicas, sleep_after_s = model.settings.replicas, model.settings.sleep_after_s
    if not sleep_after_s:
        return {"num_replicas": replicas}
    return {
        "autoscaling_config": {
            "min_replicas": 0,
            "initial_replicas": replicas,
            "max_replicas": replicas,
            # All or none: a model that is awake has all its replicas.
            "target_ongoing_requests": 1e-3,
            "upscale_delay_s": 0,
            "downscale_delay_s": sleep_after_s,
            "look_back_period_s": max(_LEAST_LOOK_BACK_S, min(30.0, sleep_after_s)),
        }
    }


def _engines(settings: Settings, model: ServedModel, cores: int) -> Any:
    limits = settings.limits
    engines = serve.deployment(EngineReplica).options(
        name=f"engine-{model.name}",
        **_scale(model),
        max_ongoing_requests=model.settings.max_running + limits.waiting,
        max_queued_requests=limits.waiting,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=limits.request_timeout_s,
        ray_actor_options={"num_cpus": cores},
    )
    return engines.bind(settings.model_dump_json(), model, cores)
