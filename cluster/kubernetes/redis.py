"""The three Redis servers of a cluster: patches with the sizes that the settings give them."""

from collections.abc import Mapping
from math import ceil
from typing import Any

import yaml

from cluster.kubernetes.sizes import KubernetesError
from cluster.settings import Settings

_STEP_MB, _MIN_MB = 256, 512


def server_patches(settings: Settings, previous: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """A patch of each server's StatefulSet, by the file's name. Raises KubernetesError.

    previous: the files that were rendered for the same cluster before.
    """
    kubernetes = settings.kubernetes
    patches = {
        "redis-answers.yaml": _patch("answers", kubernetes.answers_memory_mb, 0),
        "redis-teams.yaml": _patch("teams", kubernetes.teams_memory_mb, kubernetes.teams_disk_mb),
        "redis-gcs.yaml": _patch("gcs", kubernetes.gcs_memory_mb, kubernetes.gcs_disk_mb),
    }
    for file, patch in patches.items():
        _refuse_another_disk(patch, previous.get(file, ""))
    return patches


def target_of(file: str) -> dict[str, str]:
    """What Kustomize applies the patch in this file to; a server that was removed is skipped."""
    return {"kind": "StatefulSet", "name": f"dray-{file.removeprefix('redis-').removesuffix('.yaml')}"}


def pod_memory_mb(data_mb: int) -> int:
    """Memory of a server's pod: beside the data, clients' buffers and the pages that a rewrite of its file copies."""
    return max(_MIN_MB, ceil(data_mb * 1.5 / _STEP_MB) * _STEP_MB)


def _patch(server: str, data_mb: int, disk_mb: int) -> dict[str, Any]:
    memory = {"memory": f"{pod_memory_mb(data_mb)}Mi"}
    container = {
        "name": "redis",
        "env": [{"name": "MAXMEMORY", "value": f"{data_mb}mb"}],
        "resources": {"requests": memory, "limits": dict(memory)},
    }
    spec: dict[str, Any] = {"template": {"spec": {"containers": [container]}}}
    if disk_mb:
        disk = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{ceil(disk_mb / 1024)}Gi"}},
        }
        # A patch replaces the whole list, so it has the labels of k8s/base: Kubernetes would refuse others.
        labels = {"app.kubernetes.io/component": server, "app.kubernetes.io/part-of": "dray"}
        spec["volumeClaimTemplates"] = [{"metadata": {"name": "data", "labels": labels}, "spec": disk}]
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": f"dray-{server}"}, "spec": spec}


def _refuse_another_disk(patch: dict[str, Any], previous: str) -> None:
    """Kubernetes refuses every change of a StatefulSet's claims, so a change here would end in a failed `apply`."""
    before = yaml.safe_load(previous) or patch
    old, new = (_disk(document) for document in (before, patch))
    if old != new:
        name = patch["metadata"]["name"]
        raise KubernetesError(
            f"{name} was rendered with a disk of {old}, and Kubernetes does not let it become {new}: enlarge the claim "
            f"data-{name}-0 itself, if its storage class allows that, and leave kubernetes.{name[5:]}_disk_mb as it was"
        )


def _disk(document: dict[str, Any]) -> str:
    claims = document["spec"].get("volumeClaimTemplates", ())
    return "".join(claim["spec"]["resources"]["requests"]["storage"] for claim in claims)


def sizes_of(documents: list[dict[str, Any]]) -> dict[str, int | str]:
    """The values of a chart that stand for these sizes, as its manifests have them."""
    values: dict[str, int | str] = {}
    for document in documents:
        if document["kind"] == "StatefulSet":
            server = document["metadata"]["name"].removeprefix("dray-")
            [container] = document["spec"]["template"]["spec"]["containers"]
            [memory] = (entry["value"] for entry in container["env"] if entry["name"] == "MAXMEMORY")
            values[f"{server}MemoryMiB"] = int(memory.removesuffix("mb"))
            if disk := _disk(document):
                values[f"{server}Disk"] = disk
    return values
