"""What a pod sees: the settings with its folders and addresses, the Serve config and the environment variables."""

from pathlib import Path, PurePosixPath
from typing import Any

from cluster.kubernetes.sizes import ROUTER_UNIT, KubernetesError, ModelInCluster, drain_s, engine_pods
from cluster.launch import haproxy
from cluster.launch.environment import serve_environment
from cluster.models.folder import UnknownModel, folder_of, gguf_folder, is_folder, is_gguf, known_as
from cluster.redis_client import without_password
from cluster.serve_config import ROUTERS, Engine, Routers, serve_config
from cluster.settings import ModelSettings, Settings

STATE_DIR, MODELS_DIR = PurePosixPath("/run/dray"), PurePosixPath("/models")
"""Mount points of a pod's volumes."""
HAPROXY = PurePosixPath("/opt/dray/bin/dray-haproxy")
"""Its path in the image."""


def in_cluster(settings: Settings) -> Settings:
    """The settings of a pod: its folders, and all its addresses. Passwords come from the environment.

    Raises KubernetesError.
    """
    for url in (settings.cache.url, settings.teams.url):
        if url != without_password(url):
            raise KubernetesError(
                f"{without_password(url)} contains a password: set that URL in the routers' environment, from a Secret"
            )
    if not all(model.cores_per_replica for model in settings.served):
        raise KubernetesError(
            "set model.cores_per_replica for each model: a pod has that number of whole cores, and one more"
        )
    return settings.model_copy(
        update={
            "model": _in_pod(settings.model, settings.models_dir),
            "models": tuple(_in_pod(model, settings.models_dir) for model in settings.models),
            "host": "::" if settings.kubernetes.ipv6 else "0.0.0.0",
            "state_dir": Path(STATE_DIR),
            "lease_dir": Path(STATE_DIR / "cores"),
            "models_dir": Path(MODELS_DIR),
            "data_dir": Path(STATE_DIR / "data"),
            # The image has no chat page, and the result must not depend on this machine.
            "page": False,
        }
    )


def _in_pod(model: ModelSettings, local_models: Path) -> ModelSettings:
    """The model where a pod finds it: a GGUF file is converted outside, and its folder is in the volume of models."""
    if is_gguf(model.source):
        folder = gguf_folder(Path(model.source).expanduser(), local_models)
        source = str(MODELS_DIR / folder.name)
        return model.model_copy(update={"source": source, "name": model.name or known_as(model.source)})
    if is_folder(model.source) and not PurePosixPath(model.source).is_relative_to(MODELS_DIR):
        place = MODELS_DIR / Path(model.source).name
        raise KubernetesError(
            f"{model.source} is a folder of this machine: put it into the claim or the image of the models, and set "
            f"{place} as the source, where pods find it"
        )
    return model


def routers_of(settings: Settings, local_models: Path | None = None) -> Routers:
    """The routers and engines to run. Raises KubernetesError.

    settings: as `in_cluster` returns them. local_models: as ModelInCluster has it.
    """
    models = [ModelInCluster(model, local_models) for model in settings.served]
    for model in models:
        try:
            folder_of(model.settings.source, model.settings.weight, settings.models_dir)
        except UnknownModel as error:
            raise KubernetesError(str(error)) from None
    names = [name for model in models for name in (model.name, *model.settings.aliases)]
    names += [name for model in settings.routed for name in model.given_names]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise KubernetesError(f"two models have the name {repeated[0]!r}; give each its own `name`")
    engines = (Engine(settings, model, model.settings.cores_per_replica, model.settings.replicas) for model in models)
    return Routers(settings, settings.cache.url, settings.teams.url, tuple(engines))


def serve_config_of(routers: Routers) -> dict[str, Any]:
    """The Serve config of a RayService: like that of one machine, with each replica bound to a pod of its kind."""
    config = serve_config(routers)
    settings = routers.settings
    units = {ROUTERS: ROUTER_UNIT} | {engine.application: engine_pods(engine).unit for engine in routers.engines}
    for application in config["applications"]:
        deployment = application["deployments"][0]
        deployment["ray_actor_options"]["resources"] = {units[application["name"]]: 1}
        # In an upgrade step by step Serve takes the initial number for the minimum, for good (ray 2.60,
        # autoscaling_state.py:417), and a model could not sleep any more. So it sleeps at first, too.
        deployment.get("autoscaling_config", {}).pop("initial_replicas", None)
    http = {"host": settings.host, "port": settings.port}
    return {"proxy_location": "EveryNode", "http_options": http, **config}


def head_environment(settings: Settings) -> dict[str, str]:
    """The same in the head's pod. It has no streams to wait for, and all workers wait for the next head."""
    return pod_environment(settings) | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}


def pod_environment(settings: Settings) -> dict[str, str]:
    """Ray's and Serve's environment variables in a worker's pod. It has its own ports, so Serve's defaults apply."""
    return serve_environment(settings, Path(HAPROXY)) | {
        # Even with usage statistics turned off, a head that KubeRay starts reports that they are (ray 2.60).
        "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(drain_s(settings)),
        # An HAProxy process that was replaced still serves its streams to their end.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(drain_s(settings)),
        # HAProxy listens on IPv4 addresses only unless it is given another one.
        **({haproxy.HOST: settings.host} if settings.kubernetes.ipv6 else {}),
    }
