"""Invalid requests: errors in OpenAI's shape that name the field."""

import socket
from typing import Any

import httpx
import openai
import pytest

from cluster.client import metrics
from tests.conftest import MODEL, Dray, wait_for

HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
NO_CALL_ID = ("missing_required_parameter", "messages[0].tool_call_id")


def schema(content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": content}}


def deep(levels: int) -> dict[str, Any]:
    return {"type": "array", "items": deep(levels - 1)} if levels else {"type": "null"}


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
    ({"model": MODEL, "messages": HI, "top_p": -0.1}, 400, "invalid_value", "top_p"),
    ({"model": MODEL, "messages": HI, "max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    ({"model": MODEL, "messages": HI, "max_completion_tokens": -2}, 400, "invalid_value", "max_completion_tokens"),
    ({"model": MODEL, "messages": HI, "stop": [""]}, 400, "invalid_value", "stop"),
    ({"model": MODEL, "messages": HI, "stop": list("abcde")}, 400, "array_above_max_length", "stop"),
    ({"model": MODEL, "messages": HI, "seed": 1.5}, 400, "invalid_type", "seed"),
    ({"model": MODEL, "messages": HI, "stream": "yes"}, 400, "invalid_type", "stream"),
    ({"model": MODEL, "messages": HI, "stream_options": {}}, 400, "invalid_value", "stream_options"),
    ({"model": MODEL, "messages": HI, "n": 21}, 400, "invalid_value", "n"),
    ({"model": MODEL, "messages": HI, "logprobs": True, "top_logprobs": 21}, 400, "invalid_value", "top_logprobs"),
    ({"model": MODEL, "messages": HI, "top_logprobs": 1}, 400, "invalid_value", "top_logprobs"),
    ({"model": MODEL, "messages": HI, "logit_bias": {"5": 101}}, 400, "invalid_value", "logit_bias"),
    ({"model": MODEL, "messages": HI, "logit_bias": {"9999999": 3}}, 400, "invalid_value", "logit_bias"),
    ({"model": MODEL, "messages": HI, "frequency_penalty": 3}, 400, "invalid_value", "frequency_penalty"),
    ({"model": MODEL, "messages": HI, "repetition_penalty": 0}, 400, "invalid_value", "repetition_penalty"),
    ({"model": MODEL, "messages": HI, "tool_choice": "required"}, 400, "invalid_value", "tool_choice"),
    ({"model": MODEL, "messages": HI, "tools": [TOOL] * 129}, 400, "array_above_max_length", "tools"),
    (
        {"model": MODEL, "messages": HI, "tools": [{"type": "function", "function": {"name": "a b"}}]},
        400,
        "invalid_value",
        "tools[0].function.name",
    ),
    (
        {"model": MODEL, "messages": HI, "tools": [TOOL], "tool_choice": {"function": {"name": "g"}}},
        400,
        "invalid_value",
        "tool_choice",
    ),
    (
        {"model": MODEL, "messages": HI, "response_format": {"type": "xml"}},
        400,
        "invalid_value",
        "response_format.type",
    ),
    (
        {"model": MODEL, "messages": HI, "response_format": schema({"type": "wrong"})},
        400,
        "invalid_json_schema",
        "response_format",
    ),
    (
        {"model": MODEL, "messages": HI, "response_format": schema(deep(70))},
        400,
        "invalid_value",
        "response_format",
    ),
    ({"model": MODEL, "messages": HI, "reasoning_effort": "huge"}, 400, "invalid_value", "reasoning_effort"),
    (
        {"model": MODEL, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        400,
        "invalid_value",
        "messages[0].content[0].type",
    ),
    ({"model": MODEL, "messages": [{"role": "tool", "content": "x"}]}, 400, *NO_CALL_ID),
    ({"model": MODEL, "messages": HI * 1025}, 400, "array_above_max_length", "messages"),
    (
        {"model": MODEL, "messages": [{"role": "user", "content": "1 " * 3000}]},
        400,
        "context_length_exceeded",
        "messages",
    ),
]


@pytest.mark.parametrize(("body", "status", "code", "param"), BAD, ids=[f"{code}-{param}" for _, _, code, param in BAD])
def test_an_invalid_field_is_refused_by_name(
    http: httpx.Client, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    answer = http.post("/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error" and error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000])
def test_a_body_that_is_not_a_request_is_refused(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


TOOL_CALL = {"type": "tool_use", "id": "c", "name": "f", "input": {"n": 2**64}}
INTEGERS: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": HI, "max_tokens": 2**64}, "max_tokens"),
    ("/v1/chat/completions", {"messages": HI, "top_k": 2**64}, "top_k"),
    ("/v1/chat/completions", {"messages": HI, "metadata": {"a": 2**64}}, "metadata.a"),
    (
        "/v1/chat/completions",
        {"messages": HI, "chat_template_kwargs": {"a": [-(2**63) - 1]}},
        "chat_template_kwargs.a[0]",
    ),
    ("/v1/chat/completions", {"messages": HI, "logit_bias": {"1": 2**64}}, "logit_bias.1"),
    (
        "/v1/chat/completions",
        {"messages": HI, "response_format": schema({"const": 2**64})},
        "response_format.json_schema.schema.const",
    ),
    ("/v1/completions", {"prompt": [2**64]}, "prompt[0]"),
    ("/v1/responses", {"input": "hi", "max_tool_calls": 2**64}, "max_tool_calls"),
    (
        "/v1/responses",
        {"input": "hi", "tools": [{"type": "function", "name": "f", "parameters": {"default": 2**64}}]},
        "tools[0].parameters.default",
    ),
    ("/v1/embeddings", {"input": "hi", "dimensions": 2**64}, "dimensions"),
    ("/tokenize", {"messages": HI, "chat_template_kwargs": {"a": 2**64}}, "chat_template_kwargs.a"),
    ("/detokenize", {"tokens": [1, 2**64]}, "tokens[1]"),
]


@pytest.mark.parametrize(("path", "body", "param"), INTEGERS, ids=[f"{path}-{param}" for path, _, param in INTEGERS])
def test_an_integer_beyond_64_bits_is_refused_by_name(
    http: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    answer = http.post(path, json={"model": MODEL} | body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", param)
    assert "between -2^63 and 2^64 - 1" in error["message"]


def test_an_integer_of_64_bits_is_accepted(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": HI, "temperature": 1.0, "max_tokens": 2**64 - 1, "top_k": 2**64 - 1}
    answer = http.post("/v1/chat/completions", json=body | {"seed": -(2**63), "n": 2, "max_thinking_tokens": 2**63})
    assert answer.status_code == 200, answer.text


WRONG_SCHEMAS: list[dict[str, Any]] = [
    *({"type": {}}, {"type": "string", "format": []}, {"required": [[]], "type": "object"}),
    *({"type": "string", "minLength": None}, {"type": "string", "maxLength": True}, {"anyOf": [{"$ref": "#"}]}),
]


@pytest.mark.parametrize("wrong", WRONG_SCHEMAS, ids=str)
def test_a_schema_with_values_of_wrong_types_is_refused_by_every_api(http: httpx.Client, wrong: dict[str, Any]) -> None:
    function = {"name": "f", "parameters": wrong, "strict": True}
    chat = {"messages": HI, "model": MODEL}
    chat_tools = {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    for path, body, param in (
        ("/v1/chat/completions", chat | {"response_format": schema(wrong)}, "response_format"),
        ("/v1/chat/completions", chat | chat_tools, "tools"),
        (
            "/v1/responses",
            {"input": "hi", "text": {"format": {"type": "json_schema", "name": "s", "schema": wrong}}},
            "text.format",
        ),
        ("/v1/responses", {"input": "hi", "tools": [{"type": "function", **function}]}, "tools"),
    ):
        for stream in (False, True):
            answer = http.post(path, json={"model": MODEL, "stream": stream} | body)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_json_schema", param), path
    tools = {"tools": [{"name": "f", "input_schema": wrong}], "tool_choice": {"type": "any"}}
    answer = http.post("/v1/messages", json=chat | {"max_tokens": 9} | tools)
    assert answer.status_code == 400
    assert (
        answer.json()["error"]["type"] == "invalid_request_error" and "Schema at" in answer.json()["error"]["message"]
    )
    call = {"messages": [*HI, {"role": "assistant", "content": [TOOL_CALL]}], "max_tokens": 9, "model": MODEL}
    assert "between -2^63" in http.post("/v1/messages", json=call).json()["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "status"), [('{"a": "\\ud800"}', 200), ("[" * 100_000, 400)], ids=["surrogate", "deep"]
)
def test_a_calls_arguments_may_be_any_text(http: httpx.Client, arguments: str, status: int) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}]
    answer = http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, "max_tokens": 1})
    assert answer.status_code == status, answer.text
    assert status == 200 or answer.json()["error"]["code"] == "context_length_exceeded"


def test_numbers_of_thousands_of_digits_are_refused_in_headers_and_queries(http: httpx.Client) -> None:
    digits = "1" * 5000
    body = {"model": MODEL, "messages": HI, "max_tokens": 1}
    for name, value in (("Cache-Control", f"max-age={digits}"), ("X-Dray-Cache-TTL", digits)):
        answer = http.post("/v1/chat/completions", json=body, headers={name: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name.lower())
    assert http.get("/v1/usage", params={"days": digits}).json()["error"]["param"] == "days"


def test_another_content_type_is_refused(http: httpx.Client) -> None:
    form = http.post("/v1/chat/completions", data={"model": MODEL})
    assert (form.status_code, form.json()["error"]["code"]) == (415, "unsupported_media_type")
    body = b'{"model": "dray-demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}'
    for kind in ("application/json; charset=utf-8", "application/vnd.api+json"):
        assert http.post("/v1/chat/completions", content=body, headers={"content-type": kind}).status_code == 200


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


def test_a_request_can_limit_its_time(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "ignore_eos": True, "max_tokens": 1900}
    cut = http.post("/v1/chat/completions", json=body, headers={"x-request-timeout-seconds": "0.2"})
    assert (cut.status_code, cut.json()["error"]["code"]) == (408, "request_timeout")
    for wrong in ("soon", "0", "-1", "inf", "nan"):
        refused = http.post("/v1/chat/completions", json=body, headers={"x-request-timeout-seconds": wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-request-timeout-seconds")


def test_requests_with_the_same_idempotency_key_get_the_same_answer(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "temperature": 2.0, "max_tokens": 300}
    body |= {"ignore_eos": True}

    def ask(key: str) -> httpx.Response:
        return http.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": key})

    first, repeated, different = ask("a"), ask("a"), ask("b")
    assert first.json()["choices"] == repeated.json()["choices"] != different.json()["choices"]
    assert repeated.headers["x-dray-cache"] == "hit"
    assert ask("x" * 256).status_code == 400


@pytest.mark.parametrize("sent", [0, 30, 65_536])
def test_a_client_that_leaves_during_its_upload_is_counted_as_499(dray: Dray, sent: int) -> None:
    routes = ("/v1/chat/completions", "/v1/embeddings", "/tokenize")

    def requests(status: str) -> list[float]:
        samples = metrics(dray.url).get("dray_requests_total", [])
        return [
            sum(value for labels, value in samples if (labels["route"], labels["status"]) == (route, status))
            for route in routes
        ]

    left, failed = requests("499"), requests("500")
    for route in routes:
        head = f"POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", dray.port)) as client:
            client.sendall(f"{head}Content-Length: 99999\r\n\r\n".encode() + b" " * sent)
    if sent > 16_384:
        wait_for(lambda: requests("499") == [count + 1 for count in left])
    else:
        # HAProxy waits for the first 16 KB of a body, and tells no router of a request that ends before that.
        for route in routes:
            assert httpx.post(f"{dray.root}{route}").status_code == 400
        assert requests("499") == left
    assert requests("500") == failed
