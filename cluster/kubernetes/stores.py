"""Where pods find the models: in a claim that a Job fills, an image, or a folder of their node that they fill."""

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from math import ceil
from pathlib import Path
from typing import Any

from cluster.configuration import variable
from cluster.kubernetes.names import distinct_labels
from cluster.kubernetes.site import adapt, download_environment
from cluster.kubernetes.sizes import (
    MISSING_MODEL_S,
    MODEL_WAIT_S,
    KubernetesError,
    ModelInCluster,
    fetch_memory,
    storage,
)
from cluster.models.bucket_url import is_bucket
from cluster.models.folder import folder_of, is_folder
from cluster.serve_config import Engine
from cluster.settings import BUNDLED, Settings

BUCKETS_SECRET = "dray-buckets"
"""The Secret with variables of the containers that fetch from buckets. Optional: a service account may do."""


def copied(document: dict[str, Any]) -> dict[str, Any]:
    # Through JSON, because a YAML anchor that is used twice is one object, and a change would affect both uses.
    copied: dict[str, Any] = json.loads(json.dumps(document))
    return copied


def set_environment(container: dict[str, Any], values: Mapping[str, str]) -> None:
    own = [entry for entry in container.get("env", ()) if entry["name"] not in values]
    container["env"] = [*own, *({"name": name, "value": value} for name, value in values.items())]


def wait_for_models(
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


def models_volume(settings: Settings) -> dict[str, Any]:
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


def complete_store(
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
    adapt(job["spec"]["template"], settings)
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
        container = copied(prototype)
        container["name"] = names[folder]
        container["image"] = kubernetes.fetch_image or kubernetes.image
        container["command"] += [model.settings.source, "--weight", model.settings.weight]
        environment = {variable("models_dir"): str(settings.models_dir), variable("hub"): settings.hub}
        set_environment(container, environment | download_environment(settings))
        if is_bucket(model.settings.source):
            container["envFrom"] = [{"secretRef": {"name": BUCKETS_SECRET, "optional": True}}]
        memory = f"{fetch_memory(model, exports=bool(kubernetes.fetch_image)) >> 20}Mi"
        for kind in ("requests", "limits"):
            container["resources"][kind]["memory"] = memory
        fetchers.append(container)
    return fetchers
