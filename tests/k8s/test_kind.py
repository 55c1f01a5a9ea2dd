"""The overlay for a laptop: its pods fit on the one node that kind creates, beside what Kubernetes runs there."""

import re
from collections.abc import Iterator

import pytest
import yaml

from tests.k8s.manifests import K8S, Document, cluster_of, cpus, kustomize, mebibytes, pod_templates

FOLDER = K8S / "overlays" / "kind"
# What kubeadm and kind run themselves: the API server 250m, the controllers 200m, two name servers, the scheduler, etcd
# and the network plugin 100m each; and KubeRay's operator with the values of its chart.
SYSTEM = (0.95 + 0.1, 290 + 512)
EVICTION_MIB = 100

Size = tuple[float, int]


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return kustomize(FOLDER)


def request(pod: Document) -> Size:
    """CPUs and MiB that the scheduler counts for a pod: its containers and sidecars, or an init container with the
    sidecars before it, if that is more."""
    size, sidecars = (0.0, 0), (0.0, 0)
    for container in pod.get("initContainers", ()):
        if container.get("restartPolicy") == "Always":
            sidecars = _sum(sidecars, _own(container))
        else:
            started = _sum(sidecars, _own(container))
            size = max(size[0], started[0]), max(size[1], started[1])
    running = _sum(sidecars, *(_own(container) for container in pod["containers"]))
    return max(size[0], running[0]), max(size[1], running[1])


def _own(container: Document) -> Size:
    requests = container["resources"]["requests"]
    return cpus(requests["cpu"]), mebibytes(requests["memory"])


def _sum(*sizes: Size) -> Size:
    return sum(size[0] for size in sizes), sum(size[1] for size in sizes)


def ray_pods(documents: list[Document]) -> Iterator[Size]:
    """The pods of one RayCluster at its start, with the autoscaler that KubeRay adds to the head."""
    cluster = cluster_of(documents)
    head = cluster["headGroupSpec"]["template"]["spec"]
    autoscaler = {"resources": cluster["autoscalerOptions"]["resources"]}
    yield request(head | {"containers": [*head["containers"], autoscaler]})
    for group in cluster["workerGroupSpecs"]:
        # One of each kind runs, also where Serve asks for it only later.
        yield from [request(group["template"]["spec"])] * max(group["replicas"], 1)


def other_pods(documents: list[Document]) -> list[Size]:
    return [request(template["spec"]) for name, template in pod_templates(documents) if name.startswith("StatefulSet/")]


def promised() -> tuple[Size, Size]:
    """CPUs and MiB that the overlay's first comment asks for: to run, and for an upgrade."""
    comment = (FOLDER / "kustomization.yaml").read_text().splitlines()[0]
    found = re.search(r"(\d+) CPUs and (\d+) GiB .* needs (\d+) and (\d+)", comment)
    assert found, comment
    run_cpus, run_gib, upgrade_cpus, upgrade_gib = map(int, found.groups())
    return (run_cpus, run_gib * 1024), (upgrade_cpus, upgrade_gib * 1024)


def kubelet() -> Document:
    cluster = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
    (patch,) = cluster["kubeadmConfigPatches"]
    configuration: Document = yaml.safe_load(patch)
    return configuration


def room(machine: Size) -> Size:
    """What pods may request on a node of this size."""
    reserved = len(kubelet()["reservedSystemCPUs"].split(","))
    return machine[0] - reserved, machine[1] - EVICTION_MIB


def test_the_kubelets_configuration_reaches_the_node_that_runs_engines() -> None:
    """kind passes it on from the top of its file only, and joining nodes take the first one's."""
    cluster = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
    assert kubelet()["cpuManagerPolicy"] == "static"
    (node,) = cluster["nodes"]
    assert "kubeadmConfigPatches" not in node
    assert node["labels"] == {"dray/pool": "engines"}, "with one node, kind removes the taint of the control plane"


def test_dray_fits_beside_what_kubernetes_runs(documents: list[Document]) -> None:
    needed, available = _sum(SYSTEM, *other_pods(documents), *ray_pods(documents)), room(promised()[0])
    assert needed[0] <= available[0] and needed[1] <= available[1], (needed, available)


def test_an_upgrade_fits_where_the_overlay_says_so(documents: list[Document]) -> None:
    clusters = [*ray_pods(documents), *ray_pods(documents)]
    needed, available = _sum(SYSTEM, *other_pods(documents), *clusters), room(promised()[1])
    assert needed[0] <= available[0] and needed[1] <= available[1], (needed, available)


def test_the_scheduler_counts_sidecars_and_the_largest_init_container() -> None:
    def container(cpu: str, **more: str) -> Document:
        return {"resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}, **more}

    sidecar = container("1", restartPolicy="Always")
    assert request({"containers": [container("2")], "initContainers": [sidecar]})[0] == 3
    assert request({"containers": [container("2")], "initContainers": [container("5"), sidecar]})[0] == 5
    assert request({"containers": [container("2")], "initContainers": [sidecar, container("5")]})[0] == 6
