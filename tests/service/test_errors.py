"""Bad input: OpenAI's error shape, with the field's name, and nothing spent."""

from typing import Any

import httpx
import openai
import pytest

from tests.conftest import MODEL

HI = [{"role": "user", "content": "hi"}]
BAD: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"messages": HI}, 400, "missing_required_parameter", "model"),
    ({"model": MODEL}, 400, "missing_required_parameter", "messages"),
    ({"model": "gpt-4", "messages": HI}, 404, "model_not_found", "model"),
    ({"model": MODEL, "messages": []}, 400, "invalid_value", "messages"),
    ({"model": MODEL, "messages": "hi"}, 400, "invalid_type", "messages"),
    ({"model": MODEL, "messages": [{"role": "user"}]}, 400, "missing_required_parameter", "messages[0].content"),
    ({"model": MODEL, "messages": [{"role": "robot", "content": "x"}]}, 400, "invalid_value", "messages[0].role"),
    ({"model": MODEL, "messages": [{"role": "user", "content": 3}]}, 400, "invalid_type", "messages[0].content"),
    ({"model": MODEL, "messages": [{"role": "user", "content": " \n"}]}, 400, "empty_prompt", "messages"),
    ({"model": MODEL, "messages": HI, "temperature": 2.5}, 400, "invalid_value", "temperature"),
    ({"model": MODEL, "messages": HI, "temperature": "hot"}, 400, "invalid_type", "temperature"),
    ({"model": MODEL, "messages": HI, "top_p": 0}, 400, "invalid_value", "top_p"),
    ({"model": MODEL, "messages": HI, "max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    ({"model": MODEL, "messages": HI, "max_completion_tokens": -1}, 400, "invalid_value", "max_completion_tokens"),
    ({"model": MODEL, "messages": HI, "stop": [""]}, 400, "invalid_value", "stop"),
    ({"model": MODEL, "messages": HI, "stop": list("abcde")}, 400, "array_above_max_length", "stop"),
    ({"model": MODEL, "messages": HI, "seed": 1.5}, 400, "invalid_type", "seed"),
    ({"model": MODEL, "messages": HI, "stream": "yes"}, 400, "invalid_type", "stream"),
    ({"model": MODEL, "messages": HI, "stream_options": {}}, 400, "invalid_value", "stream_options"),
    ({"model": MODEL, "messages": HI, "top_logprob": 1}, 400, "unknown_parameter", "top_logprob"),
    ({"model": MODEL, "messages": HI * 1025}, 400, "array_above_max_length", "messages"),
    (
        {"model": MODEL, "messages": [{"role": "user", "content": "1 " * 3000}]},
        400,
        "context_length_exceeded",
        "messages",
    ),
]


@pytest.mark.parametrize(("body", "status", "code", "param"), BAD, ids=[f"{code}-{param}" for _, _, code, param in BAD])
def test_refused_by_name(http: httpx.Client, body: dict[str, Any], status: int, code: str, param: str | None) -> None:
    answer = http.post("/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error" and error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000])
def test_what_is_no_request_is_refused(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_beyond_the_limit_is_refused(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 2_100_000}]}
    answer = http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_unknown_url_and_method(http: httpx.Client) -> None:
    assert http.get("/v1/nothing").json()["error"]["code"] == "unknown_url"
    wrong = http.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert http.get("/v1/models/nothing").json()["error"]["code"] == "model_not_found"


def test_the_official_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "hi"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}], temperature=9)
    assert wrong.value.param == "temperature"


def test_models_and_health(http: httpx.Client, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "dray"
    assert http.get("/health/live").status_code == 200
    assert http.get("/health/ready").status_code == 200
    metrics = http.get("/metrics").text
    assert "dray_engine_info{" in metrics and "dray_requests_total{" in metrics
