"""What is decided before the start, by this machine's size."""

from typing import Any

import pytest

from cluster.launch.preflight import base_memory, with_routers
from cluster.serve_config import Routers
from cluster.settings import Settings


@pytest.mark.parametrize(
    ("cores", "settings", "routers"),
    [
        (1, {}, 1),
        (3, {}, 1),
        (4, {}, 2),
        (64, {}, 2),
        (64, {"router": {"replicas": 1}}, 1),
        (2, {"router": {"replicas": 3}}, 3),
        (64, {"cluster": {"head": True}}, 1),
        (64, {"router": {"max_replicas": 4}}, 2),
    ],
)
def test_two_routers_run_where_the_machine_is_large_enough(cores: int, settings: dict[str, Any], routers: int) -> None:
    decided = with_routers(Settings(**settings), cores)
    [deployment] = Routers(decided, "", "", ()).application_config()["deployments"]
    scaling = deployment.get("autoscaling_config", {})
    assert scaling.get("min_replicas", deployment.get("num_replicas")) == routers
    assert scaling.get("max_replicas", routers) == max(routers, decided.router.max_replicas)


def test_each_router_needs_memory() -> None:
    one, two, three = (base_memory(Settings(router={"replicas": count})) for count in (1, 2, 3))
    assert one < two < three and two - one == three - two
