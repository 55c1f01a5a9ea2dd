"""The service against its own OpenAPI document: no request makes the service fail, every response is as documented."""

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from deployments.api.protocol.openapi import OPERATIONS, Operation
from tests.conftest import MODEL, Dray

CHECKS = [
    schemathesis.checks.not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
# tests/service/test_teams.py, which has keys, tests the admin API.
CHECKED = [operation for operation in OPERATIONS if not operation.path.startswith(("/health", "/admin"))]


@pytest.fixture(scope="module")
def document(dray: Dray) -> Any:
    return schemathesis.openapi.from_url(f"{dray.root}/openapi.json")


@pytest.mark.parametrize("operation", CHECKED, ids=[operation.path for operation in CHECKED])
def test_no_request_makes_the_service_fail(document: Any, dray: Dray, operation: Operation) -> None:
    look_for_failures(document, dray, operation)


def look_for_failures(document: Any, dray: Dray, operation: Operation, examples: int = 15, **more: Any) -> None:
    """Sends requests that the document allows, and some that it forbids. more: arguments of each request."""
    schema = document[operation.path][operation.method.upper()]

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(case=schema.as_strategy())
    def check(case: Any) -> None:
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = MODEL  # otherwise every request ends at an unknown model
        response = case.call(base_url=dray.root, timeout=60, **more)
        case.validate_response(response, checks=CHECKS)

    check()


def test_the_page_shows_every_route_and_loads_nothing_else(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for path in http.get("/openapi.json").json()["paths"]:
        assert path in page.text
    assert not any(mark in page.text for mark in ("<script", "src=", "@import", "url("))
