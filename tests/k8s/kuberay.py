"""Pure functions of the KubeRay operator (v1.7.0, ray-operator/controllers/ray), with the source line beside each.

Those on whose behaviour the manifests rely, and no others.
"""

import copy
import json
from hashlib import sha1
from typing import Any

from tests.k8s.manifests import Document


def cluster_hash(cluster: Document) -> str:
    """What decides whether a change makes a new RayCluster (utils/util.go:647-671). Only equality has a meaning."""
    spec = copy.deepcopy(cluster)
    muted: list[dict[str, Any]] = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in muted:
        for name in ("tolerations", "schedulingGates"):
            group["template"]["spec"].pop(name, None)
    for group in spec["workerGroupSpecs"]:
        for name in ("replicas", "maxReplicas", "minReplicas"):
            group.pop(name, None)
        group.get("scaleStrategy", {}).pop("workersToDelete", None)
    spec.pop("upgradeStrategy", None)
    return sha1(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def desired_pods(group: Document) -> int:
    """How many pods the operator keeps of a worker group (utils/util.go:389-407), with one host for each replica."""
    if group.get("suspend"):
        return 0
    least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
    replicas = group.get("replicas")
    return int(least if replicas is None else min(max(replicas, least), most))


def pending_cluster(cluster: Document, *, incremental: bool) -> Document:
    """The second RayCluster of an upgrade; step by step it has no replicas at first (rayservice_controller.go:1522)."""
    spec = copy.deepcopy(cluster)
    if incremental:
        for group in spec["workerGroupSpecs"]:
            group.pop("replicas", None)
    return spec
