"""The examples in the OpenAPI document, and the page that shows them."""

import html
import json
import re
from typing import Any

import jsonschema
import msgspec
import pytest

from deployments.api.protocol.openapi import OPERATIONS, Operation, document
from deployments.api.protocol.openapi_examples import REQUESTS, RESPONSES
from deployments.api.protocol.openapi_page import content_security_policy, page

WITHOUT_RESPONSE = {"get /tokenizer_info", "get /v1/files/{id}/content"} | {
    f"get /admin/{name}"
    for name in (
        *("answers/export", "feedback/export"),
        *("usage", "budgets", "requests", "errors", "models", "cache", "cache/{key}"),
    )
}
"""Lines of files, and reports of the console, which the page describes by their fields."""
MAX_BYTES = 400_000
DOCUMENT = document()


def name_of(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


def described(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][operation.path][operation.method]
    return found


def test_every_operation_has_examples() -> None:
    assert {name_of(operation) for operation in OPERATIONS if operation.body and not operation.form} == REQUESTS.keys()
    assert {name_of(operation) for operation in OPERATIONS} - RESPONSES.keys() == WITHOUT_RESPONSE


@pytest.mark.parametrize("operation", OPERATIONS, ids=name_of)
def test_examples_are_what_the_operation_takes_and_answers(operation: Operation) -> None:
    written = described(operation)
    if operation.body and not operation.form:
        value = written["requestBody"]["content"]["application/json"]["examples"]["example"]["value"]
        msgspec.convert(value, operation.body)
    answer = written["responses"][str(operation.status)]["content"][operation.content]
    if name_of(operation) not in WITHOUT_RESPONSE:
        value = answer["examples"]["example"]["value"]
        schema = {"components": DOCUMENT["components"], **answer["schema"]}
        jsonschema.validate(value, schema)
        if isinstance(operation.answer, type):
            msgspec.convert(value, operation.answer)
            assert value.keys() <= {field.encode_name for field in msgspec.structs.fields(operation.answer)}


def test_the_page_shows_each_example_and_loads_nothing() -> None:
    text = page()
    assert len(text.encode()) < MAX_BYTES
    shown = html.unescape(text)
    for value in (*REQUESTS.values(), *RESPONSES.values()):
        assert json.dumps(value, indent=2) in shown
    assert not re.search(r"(src|href)=.?(https?:)?//|@import|url\(", text)
    policy = content_security_policy()
    assert "unsafe" not in policy and policy.startswith("default-src 'none'")
