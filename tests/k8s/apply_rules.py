"""What an API server refuses when objects are applied over those that exist (Kubernetes 1.34, pkg/apis/*/validation).

Only for the kinds of objects in the manifests.
"""

import re
from collections.abc import Iterator
from typing import Any

from tests.k8s.manifests import Document, containers, pod_templates

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")

# apps/validation.go, ValidateStatefulSetUpdate: everything else in spec is immutable.
_STATEFUL_SET = {
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
}
# batch/validation.go, ValidateJobSpecUpdate.
_JOB = {"template", "selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex"}
# scheduling/validation.go, ValidatePriorityClassUpdate.
_PRIORITY_CLASS = {"value", "preemptionPolicy"}


def refused(before: list[Document], after: list[Document]) -> list[str]:
    """Why an API server that has the objects `before` would refuse some of those `after`."""
    return [*_bad_names(after), *_forbidden_updates(before, after)]


def _bad_names(documents: list[Document]) -> Iterator[str]:
    for document in documents:
        name = document["metadata"]["name"]
        if not _SUBDOMAIN.fullmatch(name):
            yield f"{document['kind']} {name!r} has a name that is no DNS subdomain"
    for pod, template in pod_templates(documents):
        names = [container["name"] for container in containers(template)]
        yield from (f"{pod}: container {name!r} is no DNS label" for name in names if not _LABEL.fullmatch(name))
        yield from (f"{pod}: two containers are {name!r}" for name in set(names) if names.count(name) > 1)
        # KubeRay sets the label ray.io/group to a group's name.
        values = [pod.removeprefix("Job/"), *template["metadata"].get("labels", {}).values()]
        if not pod.startswith("StatefulSet/"):
            yield from (f"{pod}: {value!r} is no label" for value in values if not _LABEL_VALUE.fullmatch(value))


def _forbidden_updates(before: list[Document], after: list[Document]) -> Iterator[str]:
    existing = {(document["kind"], document["metadata"]["name"]): document for document in before}
    for document in after:
        key = document["kind"], document["metadata"]["name"]
        if old := existing.get(key):
            yield from (f"{' '.join(key)}: {field} may not change" for field in _changed(old, document))


def _changed(old: Document, new: Document) -> Iterator[str]:
    kind = new["kind"]
    if kind == "PriorityClass":
        yield from (field for field in _PRIORITY_CLASS if old.get(field) != new.get(field))
        return
    was, now = old.get("spec", {}), new.get("spec", {})
    if kind == "StatefulSet":
        yield from (field for field in {*was, *now} - _STATEFUL_SET if was.get(field) != now.get(field))
    elif kind == "Job":
        yield from (field for field in _JOB if was.get(field) != now.get(field))
    elif kind == "PersistentVolumeClaim":
        yield from _changed_claim(was, now)
    elif kind == "Service" and was.get("clusterIP") != now.get("clusterIP"):
        yield "clusterIP"


def _changed_claim(was: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """core/validation.go, ValidatePersistentVolumeClaimUpdate: only the requested size may change, and only grow."""
    mutable = {"resources", "volumeAttributesClassName"}
    yield from (field for field in {*was, *now} - mutable if was.get(field) != now.get(field))
    sizes = [int(spec["resources"]["requests"]["storage"].removesuffix("Gi")) for spec in (was, now)]
    if sizes[1] < sizes[0]:
        yield "a smaller size"
