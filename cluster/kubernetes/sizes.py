"""Contents, sizes and shutdown times of a cluster's pods, derived from the settings.

A pod holds one replica: it offers one unit of a Ray resource that only replicas of its kind request. A pod has its
engine's cores and one more, for Ray, HAProxy and the replica's own Python.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

from cluster.kubernetes.names import dns_label
from cluster.launch.environment import OBJECT_STORE_BYTES
from cluster.launch.preflight import RUNTIME_BYTES
from cluster.models.bucket_url import is_bucket
from cluster.models.catalog import CATALOG, WEIGHT_BITS
from cluster.models.folder import BUNDLED_FOLDER, folder_of, is_folder, known_as, private_memory
from cluster.models.identity import WEIGHTS_FILE
from cluster.serve_config import Engine
from cluster.settings import BUNDLED, ModelSettings, Settings

NOTICE_S = 15
"""Seconds that a terminating pod still accepts requests, until every proxy has noticed."""
RAY_DRAIN_S = 30
"""Seconds that Ray's own drain takes after the last stream."""
HEAD_GRACE_S = 60
"""Seconds that the head's pod may take to stop. It serves nothing, and there is no new head before it has gone."""
MODEL_WAIT_S = 3000
"""Seconds that a new pod waits for its models. After an hour without Ray the autoscaler gives a pod up (ray 2.60,
RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S) and says nothing; one that fails before says why, and is replaced.
"""
MISSING_MODEL_S = 300
"""The same where the models are an image, to which nothing is added: no more than keeps KubeRay from replacing pods
all the time."""
MAX_PODS = 1000
"""Upper bound of pods in a worker group: no more than a brake, because Serve requests only what its config says.

KubeRay never changes the bounds of a running RayCluster (v1.7.0, util.go:647), so that tight ones would block a later
change of replicas."""
ROUTER_UNIT = "dray-router"
_CORES_BESIDE_ENGINE, _ROUTER_CPUS = 1, 2
_ROUTER_WORK_BYTES = 512 * 2**20
_CONNECTION_BYTES = 64 * 2**10
"""HAProxy's two buffers of 16 KiB for each side of a connection."""
_MEMORY_STEP = 256 * 2**20
_EXPORT_RATIO = 1.5
"""Memory of an export relative to the weights that it reads: 5.3 GB for the 3.56 GB of the 1.5B."""

_CONVERT_RATIO = 3
"""Memory of a conversion relative to the INT8 weights that it reads."""


class KubernetesError(Exception):
    """The settings cannot be served in a cluster. The message says why."""


@dataclass(frozen=True)
class ModelInCluster:
    """A model for a cluster. It may not be on this machine, so its exact content is unknown here.

    Changed content needs a new source: a new folder in the claim, or a new image. local_models: this machine's
    `models_dir`, which may hold the same folder; None: it does not count.
    """

    settings: ModelSettings
    local_models: Path | None = None

    @property
    def name(self) -> str:
        return self.settings.name or known_as(self.settings.source)

    @property
    def fingerprint(self) -> str:
        return f"{self.settings.source}@{self.settings.weight}"

    @cached_property
    def weights_bytes(self) -> int:
        """Size of the weight file if it is here, else from the catalog. Raises KubernetesError."""
        source = self.settings.source
        if source == BUNDLED:
            return (BUNDLED_FOLDER / WEIGHTS_FILE).stat().st_size
        if (folder := self._local_folder) is not None and (folder / WEIGHTS_FILE).is_file():
            return (folder / WEIGHTS_FILE).stat().st_size
        if entry := CATALOG.get(source):
            return entry.disk_bytes(self.settings.weight)
        # A folder in a bucket is called as its model is, unless the settings give another name.
        name = self.name if is_bucket(source) else self.settings.name
        if entry := CATALOG.get(name):
            return entry.disk_bytes(self.settings.weight)
        hint = "serve a model of the catalog (`dray models list`), or set `name` to that of one of the same size"
        if folder is not None:
            hint += f", or have its folder here as {folder}: `dray models pull` fetches models and converts GGUF files"
        raise KubernetesError(f"the size of {source} is unknown here: {hint}")

    @property
    def _local_folder(self) -> Path | None:
        source = self.settings.source
        if self.local_models and is_bucket(source):
            return folder_of(source, self.settings.weight, self.local_models)
        return self.local_models / Path(source).name if self.local_models and is_folder(source) else None

    @property
    def original_bytes(self) -> int:
        """Size of the original 16-bit weights."""
        return int(self.weights_bytes * WEIGHT_BITS["fp16"] / WEIGHT_BITS[self.settings.weight])


@dataclass(frozen=True)
class Pods:
    """Worker pods of one kind.

    unit: the Ray resource of which each pod has one. cores: CPUs that Ray may assign. memory: in bytes.
    replicas: the number of pods to start with; from then on the autoscaler keeps one for each replica.
    """

    group: str
    unit: str
    cores: int
    cpus: int
    memory: int
    replicas: int

    @property
    def resources(self) -> dict[str, Any]:
        """Equal requests and limits, so that the pod is Guaranteed and its CPUs are exclusive."""
        size = {"cpu": str(self.cpus), "memory": f"{self.memory >> 20}Mi"}
        return {"requests": size, "limits": dict(size)}


def engine_memory(engine: Engine) -> int:
    """Memory of an engine's pod in bytes: Ray, Python, mapped weight file, repacked weights, KV cache and runtime."""
    needed = RUNTIME_BYTES + OBJECT_STORE_BYTES + engine.model.weights_bytes + private_memory(engine.model)
    return _rounded(needed)


def router_memory(settings: Settings) -> int:
    """Memory of a router's pod in bytes: Ray, Python, HAProxy's connections and running requests."""
    connections = settings.router.max_connections * _CONNECTION_BYTES
    needed = RUNTIME_BYTES + OBJECT_STORE_BYTES + connections + _ROUTER_WORK_BYTES
    return _rounded(needed)


def engine_pods(engine: Engine) -> Pods:
    """The pods of a model's engines."""
    deployment = engine.application_config()["deployments"][0]
    replicas = deployment.get("autoscaling_config", {}).get("min_replicas", deployment.get("num_replicas"))
    slug = dns_label(engine.application.removeprefix("engine-").rpartition("-")[0])
    cpus = (engine.cores + _CORES_BESIDE_ENGINE) * engine.settings.kubernetes.threads_per_core
    return Pods(slug, f"dray-engine-{slug}", engine.cores, cpus, engine_memory(engine), replicas)


def router_pods(settings: Settings) -> Pods:
    """The routers' pods."""
    threads = settings.kubernetes.threads_per_core
    cpus = ceil(_ROUTER_CPUS / threads) * threads
    return Pods("routers", ROUTER_UNIT, 0, cpus, router_memory(settings), settings.router.replica_minimum)


def fetch_memory(model: ModelInCluster, *, exports: bool) -> int:
    """Memory of the container that fetches a model, in bytes. exports: it may have to export the model.

    INT8 weights are converted, whether they were exported or came ready-made.
    """
    converts = _CONVERT_RATIO * model.weights_bytes if model.settings.weight == "int8" else 0
    return _rounded(RUNTIME_BYTES + max(_EXPORT_RATIO * model.original_bytes if exports else 0, converts))


def storage(models: Iterable[ModelInCluster], *, exports: bool) -> int:
    """Size of the claim in bytes: each model twice, for a new version beside the old one, and weights to export."""
    return sum(2 * model.weights_bytes + (model.original_bytes if exports else 0) for model in models)


def termination_s(settings: Settings) -> int:
    """Seconds that a pod may take to stop: notice, the longest stream, Ray's drain, the end of its processes."""
    return NOTICE_S + drain_s(settings) + RAY_DRAIN_S


def drain_s(settings: Settings) -> int:
    """Seconds that a node may drain: until its replicas' last streams end and new replicas run elsewhere."""
    return ceil(settings.limits.request_timeout_s) + RAY_DRAIN_S


def _rounded(size: float) -> int:
    return ceil(size / _MEMORY_STEP) * _MEMORY_STEP
