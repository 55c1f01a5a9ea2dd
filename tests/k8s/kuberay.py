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


def waiting_container(template: Document) -> Document:
    """The init container that the operator appends to a worker's own ones (common/pod.go:606-657)."""
    main = template["spec"]["containers"][0]
    size = {"cpu": "200m", "memory": "256Mi"}
    return {
        "name": "wait-gcs-ready",
        "image": main["image"],
        "imagePullPolicy": main.get("imagePullPolicy"),
        "command": ["/bin/bash", "-c", "--"],
        "securityContext": copy.deepcopy(main.get("securityContext")),
        "env": copy.deepcopy(main.get("env", [])),
        "volumeMounts": copy.deepcopy(main.get("volumeMounts", [])),
        "resources": {"requests": dict(size), "limits": dict(size)},
    }


def autoscaler_container(cluster: Document) -> Document:
    """The container that the operator adds to the head's pod (common/pod.go:935-1033)."""
    options = cluster["autoscalerOptions"]
    size = {"cpu": "500m", "memory": "512Mi"}
    default = {
        "name": "autoscaler",
        "image": cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["image"],
        "command": ["/bin/bash", "-c", "--"],
        "args": ["ray kuberay-autoscaler --cluster-name $(RAY_CLUSTER_NAME)"],
        "resources": {"requests": dict(size), "limits": dict(size)},
        "env": [{"name": "KUBERAY_GEN_AUTOSCALER_START_CMD", "value": "ray kuberay-autoscaler"}],
    }
    chosen = ("resources", "image", "imagePullPolicy", "volumeMounts", "securityContext", "command", "args")
    return default | {name: options[name] for name in chosen if options.get(name)}


CLEANUP_MIB = 256
"""Memory of the Job that deletes Ray's state from Redis (raycluster_controller.go:1859-1868)."""
CLEANUP = (
    "from ray._private.gcs_utils import cleanup_redis_storage; from urllib.parse import urlparse; "
    "import os; import sys; "
    "redis_address = os.getenv('RAY_REDIS_ADDRESS', '').split(',')[0]; "
    "redis_address = redis_address if '://' in redis_address else 'redis://' + redis_address; "
    "parsed = urlparse(redis_address); "
    "sys.exit(1) if not cleanup_redis_storage(host=parsed.hostname, port=parsed.port, "
    "password=os.getenv('REDIS_PASSWORD', parsed.password or ''), use_ssl=parsed.scheme=='rediss', "
    "storage_namespace=os.getenv('RAY_external_storage_namespace')) else None"
)
"""What it runs, by `python -c`, with the head's image and environment (raycluster_controller.go:1825-1841)."""
