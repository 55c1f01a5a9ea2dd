"""The service against its own OpenAPI document: no request makes the service fail, every response is as documented."""

import base64
import hashlib
import re
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
        assert f'data-path="{path}"' in page.text
    assert not any(mark in page.text for mark in ("src=", "@import", "url("))
    policy = page.headers["content-security-policy"]
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page.text, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_examples_of_the_document_are_answered(http: httpx.Client) -> None:
    sent = 0
    for path, methods in http.get("/openapi.json").json()["paths"].items():
        body = methods.get("post", {}).get("requestBody", {"content": {}})["content"].get("application/json")
        if body and body["examples"]["example"]["value"].get("model") == MODEL:
            answer = http.post(path, json=body["examples"]["example"]["value"])
            assert answer.status_code == 200, f"{path}: {answer.text}"
            sent += 1
    assert sent >= 8
