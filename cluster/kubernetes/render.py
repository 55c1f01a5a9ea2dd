"""Renders manifests from the settings: the RayService of k8s/base with its numbers filled in, and what it needs.

k8s/base has the shape of the pods, where platform engineers can read and change it. Values that follow from a setting
are never written there by hand.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b
from math import ceil
from pathlib import Path
from typing import Any

import yaml

from cluster.configuration import variable
from cluster.kubernetes.pods import in_cluster, pod_environment, routers_of, serve_config_of
from cluster.kubernetes.sizes import (
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
from cluster.launch.environment import METRICS_PORT, OBJECT_STORE_BYTES, VLLM_NAMES
from cluster.models.folder import folder_of, is_folder
from cluster.serve_config import Routers
from cluster.settings import BUNDLED, Settings

_RAYSERVICE, _MODELS = "rayservice.yaml", "models.yaml"
_PART, _COMPONENT, _MODEL = "app.kubernetes.io/part-of", "app.kubernetes.io/component", "dray/model"
_ENGINES = "dray/engines"


def render(settings: Settings, base: Path) -> dict[str, str]:
    """An overlay's files by name. base: the folder k8s/base. Raises KubernetesError."""
    inside = in_cluster(settings)
    routers = routers_of(inside, settings.models_dir)
    files = {_RAYSERVICE: _dump(_rayservice(_template(base, _RAYSERVICE)[0], routers))}
    if budgets := [_budget(pods, labels) for pods, labels in _groups(routers) if pods.min_replicas > 1]:
        files["budgets.yaml"] = _dump(*budgets)
    if settings.kubernetes.models_claim:
        files[_MODELS] = _dump(*_store(_template(base, _MODELS), inside, settings.models_dir))
    return files


def kustomization(files: Mapping[str, str], base: str) -> str:
    """The kustomization.yaml for rendered files. base: the path from there to k8s/base."""
    return _dump(
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "dray",
            "resources": [base, *(name for name in files if name != _RAYSERVICE)],
            "patches": [{"path": _RAYSERVICE}],
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
    """Writes multi-line text as a literal block."""


_Block.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _dump(*documents: dict[str, Any]) -> str:
    return yaml.dump_all(documents, Dumper=_Block, sort_keys=False, allow_unicode=True, width=1000)


def _groups(routers: Routers) -> list[tuple[Pods, dict[str, str]]]:
    """Every kind of worker pod, with the labels that identify it."""
    groups = [(router_pods(routers.settings), {_COMPONENT: "router"})]
    for engine in routers.engines:
        pods = engine_pods(engine)
        groups.append((pods, {_COMPONENT: "engine", _MODEL: pods.group}))
    names = [pods.group for pods, _ in groups]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise KubernetesError(f"two worker groups would be called {repeated[0]!r}; give one model another `name`")
    return groups


def _rayservice(template: dict[str, Any], routers: Routers) -> dict[str, Any]:
    """A patch with the values that follow from the settings, and no others, so that overlays can change the rest."""
    settings, cluster = routers.settings, template["spec"]["rayClusterConfig"]
    # Serve can replace routers in place without a failed request, but it would remove engines that old routers still
    # use. So different engines mean a new RayCluster, and KubeRay switches over to it.
    engines = sorted(engine.application for engine in routers.engines)
    version = f"v{blake2b(' '.join(engines).encode(), digest_size=5).hexdigest()}"
    head = cluster["headGroupSpec"]
    routers_group, engines_group = cluster["workerGroupSpecs"]
    head["rayStartParams"]["object-store-memory"] = str(OBJECT_STORE_BYTES)
    head["template"]["metadata"].setdefault("annotations", {})[_ENGINES] = version
    _fill_pod(head["template"]["spec"], settings)
    groups = []
    for pods, labels in _groups(routers):
        prototype = routers_group if _MODEL not in labels else engines_group
        group = _copy(prototype)
        group["groupName"] = pods.group
        group |= {"replicas": pods.min_replicas, "minReplicas": pods.min_replicas, "maxReplicas": pods.max_replicas}
        group["rayStartParams"]["object-store-memory"] = str(OBJECT_STORE_BYTES)
        group["resources"] = {"CPU": str(pods.cores), pods.unit: "1"}
        group["template"]["metadata"]["labels"] |= labels
        _fill_pod(group["template"]["spec"], settings)
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


def _fill_pod(pod: dict[str, Any], settings: Settings) -> None:
    kubernetes, main = settings.kubernetes, pod["containers"][0]
    pod["terminationGracePeriodSeconds"] = termination_s(settings)
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        container["image"] = kubernetes.image
        for port in container.get("ports", ()):
            if port["name"] in ("serve", "dray-metrics"):
                port["containerPort"] = settings.port if port["name"] == "serve" else METRICS_PORT
    environment = pod_environment(settings)
    _set_environment(main, environment)
    for container in pod.get("initContainers", ()):
        if container["name"] == "metrics":
            name = "PROMETHEUS_MULTIPROC_DIR"
            _set_environment(container, {name: environment[name]})
            if settings.metrics.vllm_names:
                container["command"] = [*container["command"], VLLM_NAMES]
    if "lifecycle" in main:
        main["lifecycle"]["preStop"]["exec"]["command"] = ["sleep", str(NOTICE_S)]
    for volume in pod["volumes"]:
        if volume["name"] == "models":
            volume.clear()
            volume |= {"name": "models", **_models_volume(settings)}


def _set_environment(container: dict[str, Any], values: Mapping[str, str]) -> None:
    own = [entry for entry in container.get("env", ()) if entry["name"] not in values]
    container["env"] = [*own, *({"name": name, "value": value} for name, value in values.items())]


def _models_volume(settings: Settings) -> dict[str, Any]:
    kubernetes = settings.kubernetes
    if kubernetes.models_claim and kubernetes.models_image:
        raise KubernetesError("set either kubernetes.models_claim or kubernetes.models_image, not both")
    if kubernetes.models_claim:
        return {"persistentVolumeClaim": {"claimName": kubernetes.models_claim, "readOnly": True}}
    if kubernetes.models_image:
        return {"image": {"reference": kubernetes.models_image, "pullPolicy": "IfNotPresent"}}
    if any(model.source != BUNDLED for model in settings.served):
        raise KubernetesError("serving other than the bundled model needs kubernetes.models_claim or .models_image")
    return {"emptyDir": {}}


def _budget(pods: Pods, labels: Mapping[str, str]) -> dict[str, Any]:
    # A RayCluster has no scale subresource, so only an absolute number of pods is allowed here.
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": f"dray-{pods.group}"},
        "spec": {
            "minAvailable": pods.min_replicas - 1,
            "selector": {"matchLabels": {_PART: "dray", **labels}},
        },
    }


def _store(templates: list[dict[str, Any]], settings: Settings, local_models: Path) -> list[dict[str, Any]]:
    """The claim that holds the models, and the Job that downloads or exports the named ones into it."""
    claim, job = templates
    kubernetes, models = settings.kubernetes, [ModelInCluster(model, local_models) for model in settings.served]
    exports = bool(kubernetes.fetch_image)
    size = kubernetes.storage_mb * 2**20 or storage(models, exports=exports)
    claim["metadata"]["name"] = kubernetes.models_claim
    claim["spec"]["resources"]["requests"]["storage"] = f"{ceil(size / 2**30)}Gi"
    pod = job["spec"]["template"]["spec"]
    prototype = pod["initContainers"].pop()
    named = {
        folder_of(model.settings.source, model.settings.weight, settings.models_dir).name: model
        for model in models
        if model.settings.source != BUNDLED and not is_folder(model.settings.source)
    }
    for folder, model in sorted(named.items()):
        container = _copy(prototype)
        container["name"] = folder.replace(".", "-")[:63]
        container["image"] = kubernetes.fetch_image or kubernetes.image
        container["command"] += [model.settings.source, "--weight", model.settings.weight]
        _set_environment(container, {variable("models_dir"): str(settings.models_dir), variable("hub"): settings.hub})
        memory = f"{fetch_memory(model, exports=exports) >> 20}Mi"
        for kind in ("requests", "limits"):
            container["resources"][kind]["memory"] = memory
        pod["initContainers"].append(container)
    pod["containers"][0]["image"] = kubernetes.image
    for volume in pod["volumes"]:
        if volume["name"] == "models":
            volume["persistentVolumeClaim"]["claimName"] = kubernetes.models_claim
    # A Job is immutable, so its name contains a hash of what it fetches.
    version = blake2b(json.dumps(pod, sort_keys=True).encode(), digest_size=4).hexdigest()
    job["metadata"]["name"] = f"dray-models-{version}"
    return [claim, job] if named else [claim]
