"""What a cluster's pods hold, how large they are and how long they take to go: all of it from the settings.

One pod holds one replica: a pod of a model's worker group offers one unit of a resource that only this model's engine
asks for, and a router's pod the same for routers. So the cores of a pod are its engine's lease and one core more, for
Ray, HAProxy and the replica's own Python.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

from cluster.launch.environment import OBJECT_STORE_BYTES
from cluster.launch.preflight import RUNTIME_BYTES
from cluster.models.catalog import CATALOG, WEIGHT_BITS
from cluster.models.folder import BUNDLED_FOLDER, WEIGHTS_FILE, known_as, private_memory
from cluster.serve_config import Engine
from cluster.settings import BUNDLED, ModelSettings, Settings

NOTICED_S = 15
"""How long a pod that goes still takes requests: by then every proxy has heard of it."""
RAY_DRAIN_S = 30
"""What Ray's own drain takes beyond the last stream."""
ROUTER_UNIT = "dray-router"
_CORES_BESIDE_ENGINE, _ROUTER_CPUS = 1, 2
_ROUTER_WORK_BYTES = 512 * 2**20
_CONNECTION_BYTES = 64 * 2**10
"""HAProxy's two buffers of 16 KiB for each side of a connection."""
_MEMORY_STEP = 256 * 2**20
_EXPORT_RATIO = 1.5
"""Memory that an export takes, by the size of the weights that it reads: 5.3 GB for the 3.56 GB of the 1.5B."""


class KubernetesError(Exception):
    """The settings cannot be served in a cluster, and why."""


@dataclass(frozen=True)
class ModelInCluster:
    """A model that a cluster will hold; it need not be on this machine, so its exact content is not known here.

    Another content under the same name is another source: a new folder in the claim, or a new image.
    """

    settings: ModelSettings

    @property
    def name(self) -> str:
        return self.settings.name or known_as(self.settings.source)

    @property
    def fingerprint(self) -> str:
        return f"{self.settings.source}@{self.settings.weight}"

    @cached_property
    def weights_bytes(self) -> int:
        """Of the file where there is one here; else by the catalog. Raises KubernetesError."""
        source = self.settings.source
        if source == BUNDLED:
            return (BUNDLED_FOLDER / WEIGHTS_FILE).stat().st_size
        if entry := CATALOG.get(source):
            return entry.disk_bytes(self.settings.weight)
        known = next((one for one in CATALOG.values() if one.name == self.settings.name), None)
        if known:
            return known.disk_bytes(self.settings.weight)
        raise KubernetesError(
            f"how large {source} is cannot be known here: serve a model of the catalog (`dray models list`), or give "
            "this one the `name` of one of its size"
        )

    @property
    def original_bytes(self) -> int:
        """Of the weights as their makers give them, in 16 bits."""
        return int(self.weights_bytes * WEIGHT_BITS["fp16"] / WEIGHT_BITS[self.settings.weight])


@dataclass(frozen=True)
class Pods:
    """Worker pods of one kind. unit: Ray's resource, of which each has one. cores: whole ones that Ray may give out."""

    group: str
    unit: str
    cores: int
    cpus: int
    memory: int
    least: int
    most: int

    @property
    def resources(self) -> dict[str, Any]:
        """Requests and limits, alike, so that the pod is Guaranteed and has its CPUs to itself."""
        size = {"cpu": str(self.cpus), "memory": f"{self.memory >> 20}Mi"}
        return {"requests": size, "limits": dict(size)}


def engine_memory(engine: Engine) -> int:
    """Bytes of an engine's pod: Ray and Python, the mapped weight file, repacked weights, KV cache and runtime."""
    needed = RUNTIME_BYTES + OBJECT_STORE_BYTES + engine.model.weights_bytes + private_memory(engine.model)
    return _rounded(needed)


def router_memory(settings: Settings) -> int:
    """Bytes of a router's pod: Ray and Python, HAProxy's connections, and requests at work."""
    connections = settings.router.max_connections * _CONNECTION_BYTES
    needed = RUNTIME_BYTES + OBJECT_STORE_BYTES + connections + _ROUTER_WORK_BYTES
    return _rounded(needed)


def engine_pods(engine: Engine) -> Pods:
    """The pods of a model's engines. One more than there are engines, so that one can move before its node goes."""
    deployment = engine.describe()["deployments"][0]
    scale = deployment.get("autoscaling_config", {})
    least = scale.get("min_replicas", deployment.get("num_replicas"))
    most = scale.get("max_replicas", deployment.get("num_replicas"))
    slug = engine.application.removeprefix("engine-").rpartition("-")[0].replace(".", "-")
    cpus = (engine.cores + _CORES_BESIDE_ENGINE) * engine.settings.kubernetes.threads_per_core
    return Pods(slug, f"dray-engine-{slug}", engine.cores, cpus, engine_memory(engine), least, most + 1)


def router_pods(settings: Settings) -> Pods:
    """The routers' pods. Twice as many at most, since new ones start before the old ones go."""
    threads, chosen = settings.kubernetes.threads_per_core, settings.router
    cpus = ceil(_ROUTER_CPUS / threads) * threads
    return Pods("routers", ROUTER_UNIT, 0, cpus, router_memory(settings), chosen.replicas, 2 * chosen.replica_limit)


def fetch_memory(model: ModelInCluster, *, exports: bool) -> int:
    """Bytes of the container that fetches a model. exports: it may have to make it from weights."""
    return _rounded(RUNTIME_BYTES + (_EXPORT_RATIO * model.original_bytes if exports else 0))


def storage(models: Iterable[ModelInCluster], *, exports: bool) -> int:
    """Bytes of the claim: each model twice, a new version beside the old one, and the weights that exports read."""
    return sum(2 * model.weights_bytes + (model.original_bytes if exports else 0) for model in models)


def leaving_s(settings: Settings) -> int:
    """How long a pod may take to go: noticed, the longest stream, Ray's own drain, and the end of its processes."""
    return NOTICED_S + drain_s(settings) + RAY_DRAIN_S


def drain_s(settings: Settings) -> int:
    """How long a node drains: its replicas' last streams end, and the replicas are made anew elsewhere."""
    return ceil(settings.limits.request_timeout_s) + RAY_DRAIN_S


def _rounded(size: float) -> int:
    return ceil(size / _MEMORY_STEP) * _MEMORY_STEP
