"""A Dray with several routers and engines, for the tests of what these do together."""

from collections.abc import Iterator

import pytest

from tests.conftest import Dray, started_dray

ROUTERS, ENGINES = 3, 2


@pytest.fixture(scope="session")
def several() -> Iterator[Dray]:
    """A Dray with ROUTERS routers, and ENGINES engine replicas of one core each. Tests leave it with all of them."""
    settings = {
        "DRAY_ROUTER__REPLICAS": str(ROUTERS),
        "DRAY_MODEL__REPLICAS": str(ENGINES),
        "DRAY_MODEL__CORES_PER_REPLICA": "1",
        "DRAY_LIMITS__MAX_QUEUED": "1000",
    }
    with started_dray(settings=settings) as dray:
        yield dray
