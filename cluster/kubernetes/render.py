"""Renders manifests from the settings: the RayService of k8s/base with its numbers filled in, and what it needs.

k8s/base has the shape of the pods, where platform engineers can read and change it. Values that follow from a setting
are never written there by hand.
"""

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from math import ceil
from pathlib import Path
from typing import Any

import yaml

from cluster.configuration import variable
from cluster.kubernetes.claims import keep_size
from cluster.kubernetes.names import distinct_labels
from cluster.kubernetes.pods import head_environment, in_cluster, pod_environment, routers_of, serve_config_of
from cluster.kubernetes.routes import ingress_patch, route_patch
from cluster.kubernetes.sizes import (
    HEAD_GRACE_S,
    MAX_PODS,
    MISSING_MODEL_S,
    MODEL_WAIT_S,
    NOTICE_S,
    KubernetesError,
    ModelInCluster,
    Pods,
    drain_s,
    engine_pods,
    fetch_memory,
    router_pods,
    storage,
    termination_s,
)
from cluster.launch.environment import METRICS_PORT, OBJECT_STORE_BYTES
from cluster.models.folder import folder_of, is_folder
from cluster.serve_config import Engine, Routers
from cluster.settings import BUNDLED, Settings

_RAYSERVICE, _MODELS = "rayservice.yaml", "models.yaml"
_NODE_STORE, _NAMESPACE_OF_NODE_STORE = "node-store.yaml", "node-store-namespace.yaml"
_PATCHES = {"ingress.yaml": "Ingress", "httproute.yaml": "HTTPRoute", _NAMESPACE_OF_NODE_STORE: "Namespace"}
"""Patches of objects that an overlay may have, by the kind of object. Kustomize skips those that match none."""
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
    if budgets := [_budget(pods, labels) for pods, labels, _ in _groups(routers) if pods.replicas > 1]:
        files["budgets.yaml"] = _dump(*budgets)
    if settings.kubernetes.models_claim:
        jobs = _store(claim, job, fetcher, inside, settings.models_dir)
        keep_size(claim, (previous or {}).get(_MODELS, ""), chosen=bool(settings.kubernetes.storage_mb))
        files[_MODELS] = _dump(claim, *jobs)
    if settings.kubernetes.models_path:
        files |= {name: _dump(*_template(base, name)) for name in (_NODE_STORE, _NAMESPACE_OF_NODE_STORE)}
    return files


def kustomization(files: Mapping[str, str], base: str) -> str:
    """The kustomization.yaml for rendered files. base: the path from there to k8s/base."""
    return _dump(
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "dray",
            "resources": [base, *(name for name in files if name not in (_RAYSERVICE, *_PATCHES))],
            "patches": [
                {"path": _RAYSERVICE},
                *({"path": name, "target": {"kind": kind}} for name, kind in _PATCHES.items() if name in files),
            ],
        }
    )


def _template(base: Path, name: str) -> list[dict[str, Any]]:
    try:
        documents = list(yaml.safe_load_all((base / name).read_text()))
    except OSError as error:
        raise KubernetesError(f"{base} is not the folder k8s/base of Dray's repository: {error}") from None
    return [_copy(document) for document in documents]


def _copy(document: dict[str, Any]) -> dict[str, Any]:
    # Through JSON, because a YAML anchor that is used twice is one object, and a change would affect both uses.
    copied: dict[str, Any] = json.loads(json.dumps(document))
    return copied


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
    head["template"]["metadata"].setdefault("annotations", {})[_ENGINES] = version
    _fill_pod(head["template"]["spec"], settings, head_environment(settings), HEAD_GRACE_S)
    groups = []
    for pods, labels, engines_read in _groups(routers):
        prototype = routers_group if _MODEL not in labels else engines_group
        group = _copy(prototype)
        group["groupName"] = pods.group
        # No pod is kept for its own sake: each replica holds one. So a second cluster grows as it takes over, and the
        # number of replicas can change while the cluster runs.
        group |= {"replicas": pods.replicas, "minReplicas": 0, "maxReplicas": MAX_PODS}
        group["rayStartParams"]["object-store-memory"] = str(OBJECT_STORE_BYTES)
        group["resources"] = {"CPU": str(pods.cores), pods.unit: "1"}
        group["template"]["metadata"]["labels"] |= labels
        _wait_for_models(group["template"]["spec"], engines_read, settings, fetcher)
        _fill_pod(group["template"]["spec"], settings, pod_environment(settings), termination_s(settings))
        group["template"]["spec"]["containers"][0]["resources"] = pods.resources
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


def _wait_for_models(
    pod: dict[str, Any], engines: Iterable[Engine], settings: Settings, fetcher: dict[str, Any]
) -> None:
    """Tells the container that waits for models their folders; leaves it out where all of them are in the image.

    Where each node keeps the models itself, containers before it fetch those that are missing there.
    """
    known = [engine.model for engine in engines if engine.model.settings.source != BUNDLED]
    folders = {str(folder_of(model.settings.source, model.settings.weight, settings.models_dir)) for model in known}
    [waiting] = (container for container in pod["initContainers"] if container["name"] == "model")
    if not folders:
        pod["initContainers"].remove(waiting)
        return
    timeout_s = MODEL_WAIT_S if settings.kubernetes.models_claim else MISSING_MODEL_S
    waiting["command"] += [*sorted(folders), "--timeout", str(timeout_s)]
    if settings.kubernetes.models_path:
        models = [model for model in known if isinstance(model, ModelInCluster)]
        fetchers = _fetchers(fetcher, models, settings)
        for container in fetchers:
            container["command"].append("--wait")
        place = pod["initContainers"].index(waiting)
        pod["initContainers"][place:place] = fetchers


def _fill_pod(pod: dict[str, Any], settings: Settings, environment: Mapping[str, str], grace_s: int) -> None:
    kubernetes, main = settings.kubernetes, pod["containers"][0]
    pod["terminationGracePeriodSeconds"] = grace_s
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        container.setdefault("image", kubernetes.image)
        for port in container.get("ports", ()):
            if port["name"] in ("serve", "dray-metrics"):
                port["containerPort"] = settings.port if port["name"] == "serve" else METRICS_PORT
    _set_environment(main, environment)
    for container in pod.get("initContainers", ()):
        if container["name"] == "metrics":
            name = "PROMETHEUS_MULTIPROC_DIR"
            _set_environment(container, {name: environment[name]})
    if "lifecycle" in main:
        main["lifecycle"]["preStop"]["exec"]["command"] = ["sleep", str(NOTICE_S)]
    for volume in pod["volumes"]:
        if volume["name"] == "models":
            volume.clear()
            # The head opens no model, and its node need not have a folder of them.
            on_node = settings.kubernetes.models_path and main["name"] == "ray-head"
            volume |= {"name": "models", **({"emptyDir": {}} if on_node else _models_volume(settings))}


def _set_environment(container: dict[str, Any], values: Mapping[str, str]) -> None:
    own = [entry for entry in container.get("env", ()) if entry["name"] not in values]
    container["env"] = [*own, *({"name": name, "value": value} for name, value in values.items())]


def _models_volume(settings: Settings) -> dict[str, Any]:
    kubernetes = settings.kubernetes
    stores = [name for name in ("models_claim", "models_image", "models_path") if getattr(kubernetes, name)]
    if len(stores) > 1:
        raise KubernetesError(f"set only one of kubernetes.{' and kubernetes.'.join(stores)}, not both")
    if kubernetes.models_claim:
        return {"persistentVolumeClaim": {"claimName": kubernetes.models_claim, "readOnly": True}}
    if kubernetes.models_image:
        return {"image": {"reference": kubernetes.models_image, "pullPolicy": "IfNotPresent"}}
    if kubernetes.models_path:
        return {"hostPath": {"path": kubernetes.models_path, "type": "Directory"}}
    if any(model.source != BUNDLED for model in settings.served):
        raise KubernetesError(
            "serving other than the bundled model needs kubernetes.models_claim, .models_image or .models_path"
        )
    return {"emptyDir": {}}


def _budget(pods: Pods, labels: Mapping[str, str]) -> dict[str, Any]:
    # A RayCluster has no scale subresource, so only an absolute number of pods is allowed here.
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": f"dray-{pods.group}"},
        "spec": {
            "minAvailable": pods.replicas - 1,
            "selector": {"matchLabels": {_PART: "dray", **labels}},
        },
    }


def _store(
    claim: dict[str, Any], job: dict[str, Any], fetcher: dict[str, Any], settings: Settings, local_models: Path
) -> list[dict[str, Any]]:
    """Completes the claim that holds the models; returns the Job that downloads or exports the named ones into it."""
    kubernetes, models = settings.kubernetes, [ModelInCluster(model, local_models) for model in settings.served]
    size = kubernetes.storage_mb * 2**20 or storage(models, exports=bool(kubernetes.fetch_image))
    claim["metadata"]["name"] = kubernetes.models_claim
    claim["spec"]["resources"]["requests"]["storage"] = f"{ceil(size / 2**30)}Gi"
    pod = job["spec"]["template"]["spec"]
    pod["initContainers"] = _fetchers(fetcher, models, settings)
    pod["containers"][0]["image"] = kubernetes.image
    for volume in pod["volumes"]:
        if volume["name"] == "models":
            volume["persistentVolumeClaim"]["claimName"] = kubernetes.models_claim
    # A Job is immutable, so its name contains a hash of its content.
    version = blake2b(json.dumps(job["spec"], sort_keys=True).encode(), digest_size=4).hexdigest()
    job["metadata"]["name"] = f"dray-models-{version}"
    return [job] if pod["initContainers"] else []


def _fetchers(prototype: dict[str, Any], models: Iterable[ModelInCluster], settings: Settings) -> list[dict[str, Any]]:
    """A container for each model that is given by name: it downloads or exports the model, unless it is there."""
    kubernetes = settings.kubernetes
    named = {
        folder_of(model.settings.source, model.settings.weight, settings.models_dir).name: model
        for model in models
        if model.settings.source != BUNDLED and not is_folder(model.settings.source)
    }
    names, fetchers = distinct_labels(sorted(named)), []
    for folder, model in sorted(named.items()):
        container = _copy(prototype)
        container["name"] = names[folder]
        container["image"] = kubernetes.fetch_image or kubernetes.image
        container["command"] += [model.settings.source, "--weight", model.settings.weight]
        _set_environment(container, {variable("models_dir"): str(settings.models_dir), variable("hub"): settings.hub})
        memory = f"{fetch_memory(model, exports=bool(kubernetes.fetch_image)) >> 20}Mi"
        for kind in ("requests", "limits"):
            container["resources"][kind]["memory"] = memory
        fetchers.append(container)
    return fetchers
