"""Changing the number of replicas while a cluster runs, by the rules of KubeRay, Ray's autoscaler and Serve."""

from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
from ray.serve._private.common import DeploymentID, TargetCapacityDirection
from ray.serve.config import AutoscalingConfig as ServeAutoscaling

from cluster.kubernetes.render import render
from cluster.settings import Settings
from tests.k8s.kuberay import cluster_hash, desired_pods, pending_cluster
from tests.k8s.manifests import K8S, Document

ENGINE: dict[str, Any] = {"source": "deepseek-r1-distill-qwen-1.5b", "cores_per_replica": 4}


def rendered(routers: int = 2, **model: Any) -> Document:
    """The spec of a RayService with these settings."""
    settings = Settings(model=ENGINE | model, router={"replicas": routers}, kubernetes={"models_claim": "store"})
    spec: Document = yaml.safe_load(render(settings, K8S / "base")["rayservice.yaml"])["spec"]
    return spec


def applications(spec: Document) -> dict[str, Document]:
    config = yaml.safe_load(spec["serveConfigV2"])
    return {app["name"].partition("-")[0]: app["deployments"][0] for app in config["applications"]}


def requested(spec: Document) -> list[dict[str, float]]:
    """What the replicas that Serve's config asks for request of Ray."""
    requests: list[dict[str, float]] = []
    for deployment in applications(spec).values():
        options = deployment["ray_actor_options"]
        shape = options["resources"] | ({"CPU": options["num_cpus"]} if options["num_cpus"] else {})
        requests += [shape] * deployment["num_replicas"]
    return requests


def launched(running: Document, wanted: Document) -> dict[str, int]:
    """The pods that Ray's autoscaler adds to an empty cluster. running: the RayCluster whose bounds are in force."""
    document = {"metadata": {"name": "dray", "namespace": "dray"}, "spec": running["rayClusterConfig"]}
    config = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(document))
    requests = [ResourceRequestUtil.make(shape) for shape in requested(wanted)]
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_worker_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(requests),
            disable_launch_config_check=True,
        )
    )
    assert not reply.infeasible_resource_requests
    return {launch.instance_type: launch.count for launch in reply.to_launch}


@pytest.mark.parametrize("change", [{"replicas": 7}, {"replicas": 1}, {"routers": 5}])
def test_a_running_cluster_gets_the_new_number_of_replicas(change: dict[str, Any]) -> None:
    """KubeRay sends the Serve config, and keeps the cluster with the bounds it had. Those must not be in the way."""
    before, after = rendered(replicas=3), rendered(**{"replicas": 3, **change})
    assert cluster_hash(before["rayClusterConfig"]) == cluster_hash(after["rayClusterConfig"]), "no second cluster"
    assert before["serveConfigV2"] != after["serveConfigV2"]
    expected = {"routers": change.get("routers", 2), ENGINE["source"].replace(".", "-"): change.get("replicas", 3)}
    assert launched(before, after) == expected


def test_other_numbers_of_replicas_under_load_reach_a_running_cluster() -> None:
    before, after = rendered(replicas=2, max_replicas=4), rendered(replicas=2, max_replicas=40)
    assert cluster_hash(before["rayClusterConfig"]) == cluster_hash(after["rayClusterConfig"])
    [_, group] = before["rayClusterConfig"]["workerGroupSpecs"]
    scaling = applications(after)["engine"]["autoscaling_config"]
    assert scaling["max_replicas"] == 40 < group["maxReplicas"]


def test_a_second_cluster_grows_as_it_takes_over() -> None:
    spec = rendered(replicas=4)["rayClusterConfig"]
    groups = pending_cluster(spec, incremental=True)["workerGroupSpecs"]
    assert [desired_pods(group) for group in groups] == [0, 0]
    groups = pending_cluster(spec, incremental=False)["workerGroupSpecs"]
    assert [desired_pods(group) for group in groups] == [2, 4]


@pytest.mark.parametrize("direction", [None, TargetCapacityDirection.UP, TargetCapacityDirection.DOWN])
def test_a_model_may_sleep_under_every_strategy(direction: TargetCapacityDirection | None) -> None:
    """An upgrade step by step leaves target_capacity set, and with it Serve's idea of a minimum."""
    deployment = applications(rendered(replicas=2, sleep_after_s=600))["engine"]
    state = DeploymentAutoscalingState(DeploymentID("engine"))
    state._config = ServeAutoscaling(**deployment["autoscaling_config"])
    state._target_capacity, state._target_capacity_direction = (100 if direction else None), direction
    assert state.get_num_replicas_lower_bound() == 0
    assert state.get_num_replicas_upper_bound() == 2
