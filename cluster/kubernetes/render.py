"""Renders manifests from the settings: the RayService of k8s/base with its numbers filled in, and what it needs.

k8s/base has the shape of the pods, where platform engineers can read and change it. Values that follow from a setting
are never written there by hand.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import yaml

from cluster.configuration import variable
from cluster.kubernetes.claims import keep_size
from cluster.kubernetes.network import more_policies
from cluster.kubernetes.pods import head_environment, in_cluster, pod_environment, routers_of, serve_config_of
from cluster.kubernetes.redis import server_patches, target_of
from cluster.kubernetes.routes import ingress_patch, route_patch
from cluster.kubernetes.site import adapt, transformers
from cluster.kubernetes.sizes import (
    HEAD_GRACE_S,
    MAX_PODS,
    NOTICE_S,
    KubernetesError,
    Pods,
    drain_s,
    engine_pods,
    router_pods,
    termination_s,
)
from cluster.kubernetes.stores import (
    BUCKETS_SECRET,
    complete_store,
    copied,
    models_volume,
    set_environment,
    wait_for_models,
)
from cluster.launch.environment import METRICS_PORT, OBJECT_STORE_BYTES, VLLM_NAMES
from cluster.serve_config import Engine, Routers
from cluster.settings import Settings

_RAYSERVICE, _MODELS, _SITE = "rayservice.yaml", "models.yaml", "site.yaml"
_NODE_STORE, _NAMESPACE_OF_NODE_STORE = "node-store.yaml", "node-store-namespace.yaml"
_SERVERS = ("redis-answers.yaml", "redis-teams.yaml", "redis-gcs.yaml")
_PATCHES = {
    "ingress.yaml": {"kind": "Ingress"},
    "httproute.yaml": {"kind": "HTTPRoute"},
    _NAMESPACE_OF_NODE_STORE: {"kind": "Namespace"},
    **{file: target_of(file) for file in _SERVERS},
}
"""Patches of objects that an overlay may have, by what they change. Kustomize skips those that match nothing."""
_PART, _COMPONENT, _MODEL = "app.kubernetes.io/part-of", "app.kubernetes.io/component", "dray/model"
_ENGINES = "dray/engines"


def render(settings: Settings, base: Path, previous: Mapping[str, str] | None = None) -> dict[str, str]:
    """An overlay's files by name. Raises KubernetesError.

    base: the folder k8s/base. previous: the files that were rendered for the same cluster before, and may be applied
    there.
    """
    inside = in_cluster(settings)
    routers = routers_of(inside, settings.models_dir)
    claim, job = _template(base, _MODELS)
    fetcher = job["spec"]["template"]["spec"]["initContainers"].pop()
    files = {
        _RAYSERVICE: _dump(_rayservice(_template(base, _RAYSERVICE)[0], routers, fetcher)),
        "ingress.yaml": _dump(ingress_patch(inside)),
        "httproute.yaml": _dump(route_patch(inside)),
    }
    files |= {name: _dump(patch) for name, patch in server_patches(settings, previous or {}).items()}
    if budgets := [_budget(pods, labels) for pods, labels, _ in _groups(routers) if pods.replicas > 1]:
        files["budgets.yaml"] = _dump(*budgets)
    if policies := more_policies(settings):
        files["network.yaml"] = _dump(*policies)
    files[_SITE] = _dump(*transformers(settings))
    if settings.kubernetes.models_claim:
        jobs = complete_store(claim, job, fetcher, inside, settings.models_dir)
        keep_size(claim, (previous or {}).get(_MODELS, ""), chosen=bool(settings.kubernetes.storage_mb))
        files[_MODELS] = _dump(claim, *jobs)
    if settings.kubernetes.models_path:
        files |= {name: _dump(*_template(base, name)) for name in (_NODE_STORE, _NAMESPACE_OF_NODE_STORE)}
    return files


def kustomization(files: Mapping[str, str], base: str, components: Sequence[str] = ()) -> str:
    """The kustomization.yaml for rendered files. base, components: paths from there to k8s/base and to components."""
    return _dump(
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [base, *(name for name in files if name not in (_RAYSERVICE, _SITE, *_PATCHES))],
            "patches": [
                {"path": _RAYSERVICE},
                *({"path": name, "target": target} for name, target in _PATCHES.items() if name in files),
            ],
            "transformers": [_SITE],
            **({"components": list(components)} if components else {}),
        }
    )


def _template(base: Path, name: str) -> list[dict[str, Any]]:
    try:
        documents = list(yaml.safe_load_all((base / name).read_text()))
    except OSError as error:
        raise KubernetesError(f"{base} is not the folder k8s/base of Dray's repository: {error}") from None
    return [copied(document) for document in documents]


class _Block(yaml.SafeDumper):
    """Writes multi-line text as a literal block, and a value that is used twice in full."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Block.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _dump(*documents: dict[str, Any] | list[dict[str, Any]]) -> str:
    return yaml.dump_all(documents, Dumper=_Block, sort_keys=False, allow_unicode=True, width=1000)


def _groups(routers: Routers) -> list[tuple[Pods, dict[str, str], tuple[Engine, ...]]]:
    """Every kind of worker pod, with the labels that identify it, and the engines whose models it reads."""
    groups = [(router_pods(routers.settings), {_COMPONENT: "router"}, routers.engines)]
    for engine in routers.engines:
        pods = engine_pods(engine)
        groups.append((pods, {_COMPONENT: "engine", _MODEL: pods.group}, (engine,)))
    names = [pods.group for pods, _, _ in groups]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise KubernetesError(f"two worker groups would be called {repeated[0]!r}; give one model another `name`")
    return groups


def _rayservice(template: dict[str, Any], routers: Routers, fetcher: dict[str, Any]) -> dict[str, Any]:
    """A patch with the values that follow from the settings, and no others, so that overlays can change the rest.

    fetcher: the container that fetches a model.
    """
    settings, cluster = routers.settings, template["spec"]["rayClusterConfig"]
    # Serve can replace routers in place without a failed request, but it would remove engines that old routers still
    # use. So different engines mean a new RayCluster, and KubeRay switches over to it.
    engines = sorted(engine.application for engine in routers.engines)
    version = f"v{blake2b(' '.join(engines).encode(), digest_size=5).hexdigest()}"
    head = cluster["headGroupSpec"]
    routers_group, engines_group = cluster["workerGroupSpecs"]
    head["rayStartParams"]["object-store-memory"] = str(OBJECT_STORE_BYTES)
    head["rayStartParams"]["dashboard-host"] = settings.host
    head["template"]["metadata"].setdefault("annotations", {})[_ENGINES] = version
    _fill_pod(head["template"]["spec"], settings, head_environment(settings), HEAD_GRACE_S)
    adapt(head["template"], settings)
    groups = []
    for pods, labels, engines_read in _groups(routers):
        prototype = routers_group if _MODEL not in labels else engines_group
        group = copied(prototype)
        group["groupName"] = pods.group
        # No pod is kept for its own sake: each replica holds one. So a second cluster grows as it takes over, and the
        # number of replicas can change while the cluster runs.
        group |= {"replicas": pods.replicas, "minReplicas": 0, "maxReplicas": MAX_PODS}
        group["rayStartParams"]["object-store-memory"] = str(OBJECT_STORE_BYTES)
        group["resources"] = {"CPU": str(pods.cores), pods.unit: "1"}
        group["template"]["metadata"]["labels"] |= labels
        wait_for_models(group["template"]["spec"], engines_read, settings, fetcher)
        _fill_pod(group["template"]["spec"], settings, pod_environment(settings), termination_s(settings))
        main = group["template"]["spec"]["containers"][0]
        main["resources"] = pods.resources
        if settings.batches.url and labels[_COMPONENT] == "router":
            main["envFrom"] = [*main["envFrom"], {"secretRef": {"name": BUCKETS_SECRET, "optional": True}}]
            set_environment(main, {variable("batches.url"): settings.batches.url})  # for commands in the pod
        adapt(group["template"], settings)
        groups.append(group)
    return {
        **{key: template[key] for key in ("apiVersion", "kind", "metadata")},
        "spec": {
            # The old cluster is kept until its last streams end.
            "rayClusterDeletionDelaySeconds": drain_s(settings),
            "serveConfigV2": _dump(serve_config_of(routers)),
            "rayClusterConfig": {"headGroupSpec": head, "workerGroupSpecs": groups},
        },
    }


def _fill_pod(pod: dict[str, Any], settings: Settings, environment: Mapping[str, str], grace_s: int) -> None:
    kubernetes, main = settings.kubernetes, pod["containers"][0]
    pod["terminationGracePeriodSeconds"] = grace_s
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        container.setdefault("image", kubernetes.image)
        for port in container.get("ports", ()):
            if port["name"] in ("serve", "dray-metrics"):
                port["containerPort"] = settings.port if port["name"] == "serve" else METRICS_PORT
    set_environment(main, environment)
    for container in pod.get("initContainers", ()):
        if container["name"] == "metrics":
            name = "PROMETHEUS_MULTIPROC_DIR"
            set_environment(container, {name: environment[name]})
            if settings.metrics.vllm_names:
                container["command"] = [*container["command"], VLLM_NAMES]
    if "lifecycle" in main:
        main["lifecycle"]["preStop"]["exec"]["command"] = ["sleep", str(NOTICE_S)]
    for volume in pod["volumes"]:
        if volume["name"] == "models":
            volume.clear()
            # The head opens no model, and its node need not have a folder of them.
            on_node = settings.kubernetes.models_path and main["name"] == "ray-head"
            volume |= {"name": "models", **({"emptyDir": {}} if on_node else models_volume(settings))}


def _budget(pods: Pods, labels: Mapping[str, str]) -> dict[str, Any]:
    # A RayCluster has no scale subresource, so only an absolute number of pods is allowed here.
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": f"dray-{pods.group}"},
        "spec": {
            "minAvailable": pods.replicas - 1,
            # A pod that is not ready serves nobody, and must not keep a node from being drained.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": {_PART: "dray", **labels}},
        },
    }
