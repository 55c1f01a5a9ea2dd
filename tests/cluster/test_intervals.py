"""The control plane's intervals grow with the service, and Serve gets them."""

import ast
from pathlib import Path

import pytest
import ray.serve

from cluster.intervals import Intervals
from cluster.kubernetes.pods import routers_of
from cluster.launch.environment import serve_environment
from cluster.serve_config import ENGINE
from cluster.settings import ModelSettings, RouterSettings, Settings
from tests.conftest import parsed

SERVE = Path(ray.serve.__file__).parent
CONSTANTS = SERVE / "_private" / "constants.py"


def settings(replicas: int, routers: int, max_replicas: int = 0) -> Settings:
    model = ModelSettings(replicas=replicas, max_replicas=max_replicas, cores_per_replica=1)
    return Settings(model=model, router=RouterSettings(replicas=routers))


@pytest.mark.parametrize(("replicas", "routers"), [(1, 1), (60, 4), (100, 20)])
def test_a_small_service_has_the_shortest(replicas: int, routers: int) -> None:
    assert Intervals.of(settings(replicas, routers)) == Intervals(0.5, 1, 1, 1, 1)


def test_a_large_service_asks_no_more_often_than_the_controller_can_bear() -> None:
    intervals = Intervals.of(settings(1000, 20))
    assert 1000 / intervals.routing_stats <= 400
    assert 1000 / intervals.scaling_reports <= 100
    assert 1020 / intervals.proxy_checks <= 200 and 1020 / intervals.router_checks <= 200
    assert 1000 * 20 / intervals.control_loop <= 14_000
    more = Intervals.of(settings(1000, 40))
    assert more.control_loop > intervals.control_loop and more.routing_stats == intervals.routing_stats


def test_they_are_those_of_the_largest_service_that_is_allowed() -> None:
    two = Settings(
        models=(ModelSettings(name="a", replicas=400), ModelSettings(name="b", replicas=1, max_replicas=600))
    )
    assert Intervals.of(two) == Intervals.of(settings(1, 1, max_replicas=1000)) == Intervals.of(settings(1000, 1))


def test_serve_gets_them() -> None:
    large = settings(10, 20, max_replicas=1000)
    intervals = Intervals.of(large)
    environment = serve_environment(large, Path("haproxy"))
    assert environment["RAY_SERVE_CONTROL_LOOP_INTERVAL_S"] == f"{intervals.control_loop:g}"
    assert environment["RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"] == f"{intervals.proxy_checks:g}"
    assert environment["RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER"] == f"{1000 * intervals.router_checks:.0f}ms"
    (engine,) = routers_of(large).engines
    (deployment,) = engine.application_config()["deployments"]
    assert deployment["name"] == ENGINE
    assert deployment["request_router_config"]["request_routing_stats_period_s"] == intervals.routing_stats
    assert deployment["autoscaling_config"]["metrics_interval_s"] == intervals.scaling_reports


def test_serve_reads_every_variable_that_it_gets() -> None:
    """Ray has variables that nothing reads, such as one for the interval of replicas' reports (ray 2.60)."""
    constants = parsed(CONSTANTS)
    held = {
        value.value: target.id
        for node in ast.walk(constants)
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name)
        for value in ast.walk(node.value)
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    }
    imported = {
        alias.name
        for file in SERVE.rglob("*.py")
        if file != CONSTANTS
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names = [name for name in serve_environment(Settings(), Path("haproxy")) if name.startswith("RAY_SERVE_")]
    assert len(names) > 10
    assert [name for name in names if held[name] not in imported] == []
