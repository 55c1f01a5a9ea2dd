"""Random requests to every operation of the API: no request makes the service fail, and every answer is as documented.

Each run draws other requests and prints its seed. EXPLORE_SEED repeats a run. EXPLORE_EXAMPLES and EXPLORE_SECONDS are
the limits of each operation.
"""

import json
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings, strategies
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from deployments.api.protocol.openapi import OPERATIONS, Operation
from tests.conftest import MODEL, Dray, started_dray, wait_for

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("EXPLORE_SEED", random.randrange(1 << 32)))
EXAMPLES = int(os.environ.get("EXPLORE_EXAMPLES", "400"))
SECONDS = float(os.environ.get("EXPLORE_SECONDS", "120"))
CHECKS = [
    schemathesis.checks.not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]


@pytest.fixture(scope="module")
def explored() -> Iterator[tuple[Dray, dict[str, str]]]:
    """A Dray with an administrator's key, and the headers with that key."""
    with started_dray() as dray:
        created = dray.run("keys", "create", "--admin", "--json")
        assert created.returncode == 0, created.stderr
        headers = {"Authorization": f"Bearer {json.loads(created.stdout)['key']}"}
        wait_for(lambda: httpx.get(f"{dray.root}/admin/teams", headers=headers).is_success)
        yield dray, headers


@pytest.mark.timeout(SECONDS + 180)
@pytest.mark.parametrize("operation", OPERATIONS, ids=[f"{each.method} {each.path}" for each in OPERATIONS])
def test_random_requests_are_answered_as_documented(
    explored: tuple[Dray, dict[str, str]], operation: Operation
) -> None:
    dray, headers = explored
    document: Any = schemathesis.openapi.from_url(f"{dray.root}/openapi.json")
    described = document[operation.path][operation.method.upper()]
    modes = [GenerationMode.POSITIVE]
    if operation.body or operation.query:
        modes.append(GenerationMode.NEGATIVE)
    end = time.monotonic() + SECONDS
    statuses: list[int] = []

    @seed(SEED)
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=strategies.one_of([described.as_strategy(generation_mode=mode) for mode in modes]))
    def explore(case: Any) -> None:
        if time.monotonic() > end:
            return
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = MODEL  # otherwise every request would end as 404
        response = case.call(base_url=dray.root, headers=headers, timeout=60)
        statuses.append(response.status_code)
        case.validate_response(response, checks=CHECKS)

    print(f"To repeat these requests: EXPLORE_SEED={SEED}")
    explore()
    print({status: statuses.count(status) for status in sorted(set(statuses))})
    assert statuses
