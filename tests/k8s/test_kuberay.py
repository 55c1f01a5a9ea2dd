"""What the KubeRay operator makes of the manifests, by its own pure functions (tests/k8s/kuberay.py)."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.kubernetes.render import render
from cluster.ports import free_port
from cluster.settings import Settings
from tests.k8s.checks import pods
from tests.k8s.kuberay import (
    CLEANUP,
    CLEANUP_MIB,
    autoscaler_container,
    cluster_hash,
    waiting_container,
)
from tests.k8s.manifests import K8S, OVERLAYS, Document, cluster_of, kustomize, settings_of
from tests.k8s.test_redis import configuration, running

# A small process in between: a child's peak includes what its parent had at the fork.
_MEASURE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], check=False).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""

FIRST: dict[str, Any] = {
    "model": {"source": "deepseek-r1-distill-qwen-1.5b", "cores_per_replica": 4, "replicas": 2},
    "kubernetes": {"models_claim": "store"},
}
SAME_CLUSTER: dict[str, dict[str, Any]] = {
    "aliases": {"model": FIRST["model"] | {"aliases": ["default"]}},
    "replicas": {"model": FIRST["model"] | {"replicas": 5}},
    "replicas that follow the load": {"model": FIRST["model"] | {"max_replicas": 5}},
    "sleep": {"model": FIRST["model"] | {"sleep_after_s": 600}},
    "routers": {"router": {"replicas": 3}},
    "the cache": {"cache": {"ttl_s": 60}},
    "a limit": {"limits": {"messages": 7}},
}
NEW_CLUSTER: dict[str, dict[str, Any]] = {
    "another model": {"model": FIRST["model"] | {"source": "qwen3-0.6b"}},
    "one model more": {"models": [FIRST["model"], {"source": "qwen3-0.6b", "cores_per_replica": 2}]},
    "how engines compute": {"model": FIRST["model"] | {"precision": "exact"}},
    "cores": {"model": FIRST["model"] | {"cores_per_replica": 8}},
    "memory": {"model": FIRST["model"] | {"kv_cache_mb": 4096}},
    "another image": {"kubernetes": {"models_claim": "store", "image": "dray:2"}},
    "another store": {"kubernetes": {"models_claim": "store-2"}},
    "longer requests": {"limits": {"request_timeout_s": 1200}},
    "connections": {"router": {"max_connections": 9000}},
}


def cluster(**changes: Any) -> Document:
    files = render(Settings(**(FIRST | changes)), K8S / "base")
    spec: Document = yaml.load(files["rayservice.yaml"], yaml.CSafeLoader)["spec"]["rayClusterConfig"]
    return spec


@pytest.mark.parametrize("name", SAME_CLUSTER)
def test_serve_takes_over_a_change_in_place(name: str) -> None:
    assert cluster_hash(cluster(**SAME_CLUSTER[name])) == cluster_hash(cluster())


@pytest.mark.parametrize("name", NEW_CLUSTER)
def test_a_change_makes_a_second_cluster(name: str) -> None:
    changed = cluster(**NEW_CLUSTER[name])
    assert cluster_hash(changed) != cluster_hash(cluster())
    # Groups that are appended would be added to the running cluster, without a switch of the engines that routers use
    # (rayservice_controller.go:1386-1405).
    changed["workerGroupSpecs"] = changed["workerGroupSpecs"][: len(cluster()["workerGroupSpecs"])]
    assert cluster_hash(changed) != cluster_hash(cluster())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_the_operator_adds_is_guaranteed_and_restricted_too(overlay: str) -> None:
    documents = copy.deepcopy(kustomize(K8S / "overlays" / overlay))
    spec = cluster_of(documents)
    for group in spec["workerGroupSpecs"]:
        added = waiting_container(group["template"])
        # It would end the pod's QoS class and fail Pod Security, if the Ray container did not pass it on.
        assert added["securityContext"]["readOnlyRootFilesystem"] and added["image"]
        group["template"]["spec"]["initContainers"].append(added)
        names = {entry["name"] for entry in added["env"]}
        # Then the operator sets 600 s (common/pod.go:91-102), by which the head's grace period is reckoned.
        assert "RAY_gcs_rpc_server_reconnect_timeout_s" not in names
    spec["headGroupSpec"]["template"]["spec"]["containers"].append(autoscaler_container(spec))
    assert list(pods(documents, settings_of(overlay))) == []


def test_the_autoscaler_runs_the_generated_command() -> None:
    """KubeRay sets it in the environment, and refuses a cluster that sets it itself (utils/validation.go:250)."""
    options = cluster_of(kustomize(K8S / "overlays" / "kind"))["autoscalerOptions"]
    assert "$KUBERAY_GEN_AUTOSCALER_START_CMD" in options["args"][0]
    assert not options.get("env")


def test_the_cleanup_job_deletes_rays_state_within_its_memory(tmp_path: Path) -> None:
    """The command that KubeRay generates, on the rendered server of Ray's state (here without TLS)."""
    port = free_port()
    command, _ = configuration(kustomize(K8S / "overlays" / "kind"), "dray-gcs", tmp_path, port)
    with running(command, "s3cret", port) as connect, connect("s3cret") as client:
        client.hset("RAYone@KV", "key", "value")
        client.hset("RAYtwo@KV", "key", "value")
        environment = os.environ | {
            "RAY_REDIS_ADDRESS": f"redis://127.0.0.1:{port}",
            "REDIS_PASSWORD": "s3cret",
            "RAY_external_storage_namespace": "one",
            "RAY_redis_db_connect_retries": "120",
        }
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, sys.executable, "-c", CLEANUP],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert client.keys() == [b"RAYtwo@KV"]
    assert int(done.stdout.splitlines()[-1]) / 1024 < CLEANUP_MIB
