"""Request bodies of every API: whatever JSON a client sends is accepted, or refused with the name of its field."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.models.folder import ServedModel
from cluster.settings import LimitSettings
from deployments.api.protocol.admin import CreateKeyRequest, CreateTeamRequest, RotateKeyRequest, UpdateTeamRequest
from deployments.api.protocol.chat import chat_generation, read_chat
from deployments.api.protocol.common import template_arguments
from deployments.api.protocol.completions import completion_generations, read_completion
from deployments.api.protocol.embeddings import read_embedding
from deployments.api.protocol.messages import messages_generation, read_messages
from deployments.api.protocol.parsing import parse
from deployments.api.protocol.responses import read_response, response_error, response_generation
from deployments.api.protocol.tokens import decode_detokenize, decode_tokenize
from deployments.common.errors import ApiError
from deployments.common.types import GenerationRequest
from deployments.generation.schemas import SchemaPreparer

LIMITS = LimitSettings()
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}
HI = [{"role": "user", "content": "hi"}]
Read = Callable[[bytes, ServedModel], list[GenerationRequest]]


@dataclass(frozen=True)
class Api:
    """A request body with almost every field, and the function that reads it."""

    name: str
    read: Read
    body: dict[str, Any]


def read_by(decoder: "msgspec.json.Decoder[Any]") -> Read:
    def read(body: bytes, model: ServedModel) -> list[GenerationRequest]:
        parse(decoder, body)
        return []

    return read


def chat(body: bytes, model: ServedModel) -> list[GenerationRequest]:
    return [chat_generation(read_chat(body, LIMITS), model, LIMITS)]


def completions(body: bytes, model: ServedModel) -> list[GenerationRequest]:
    return completion_generations(read_completion(body, LIMITS), model, LIMITS)


def responses(body: bytes, model: ServedModel) -> list[GenerationRequest]:
    return [response_generation(read_response(body, LIMITS), model, LIMITS)]


def messages(body: bytes, model: ServedModel) -> list[GenerationRequest]:
    return [messages_generation(read_messages(body, LIMITS), model, LIMITS)]


def embeddings(body: bytes, model: ServedModel) -> list[GenerationRequest]:
    read_embedding(body, LIMITS)
    return []


def tokenize(body: bytes, model: ServedModel) -> list[GenerationRequest]:
    template_arguments(parse(decode_tokenize, body).chat_template_kwargs, None, LIMITS)
    return []


SAMPLING = {"temperature": 1, "top_p": 0.5, "frequency_penalty": 0, "presence_penalty": 0, "stop": ["a"], "seed": 1}
SAMPLING |= {"top_k": 5, "min_p": 0, "repetition_penalty": 1, "min_tokens": 1, "ignore_eos": False}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CHAT = {
    "model": "m",
    "messages": [
        *HI,
        {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "t"}]},
    ],
    "max_completion_tokens": 9,
    **SAMPLING,
    "n": 1,
    "logprobs": True,
    "top_logprobs": 20,
    "logit_bias": {"1": -100, "2": 0.5},
    "stream": True,
    "stream_options": {"include_usage": True},
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": True,
    "reasoning_effort": "low",
    "max_thinking_tokens": 5,
    "chat_template_kwargs": {"a": {"b": [1]}},
    "metadata": {"a": "b"},
    "prediction": {"a": [1]},
}
COMPLETION = {
    "model": "m",
    "prompt": [[1, 2], [3]],
    "max_tokens": 9,
    **SAMPLING,
    "n": 1,
    "best_of": 1,
    "logprobs": 20,
    "logit_bias": {"1": 100},
    "stream": True,
    "stream_options": {"include_usage": True},
}
RESPONSE = {
    "model": "m",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "r"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "o"},
    ],
    "instructions": "i",
    "max_output_tokens": 9,
    "temperature": 1,
    "top_p": 1,
    "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}},
    "reasoning": {"effort": "low"},
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 20,
    "tools": [{"type": "function", **FUNCTION}],
    "tool_choice": {"type": "function", "name": "f"},
    "stream": True,
    "stream_options": {"a": [1]},
    "metadata": {"a": "b"},
    "max_tool_calls": 3,
}
MESSAGES = {
    "model": "m",
    "messages": [
        *HI,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {"a": [{"b": 1}]}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "o"}]},
    ],
    "max_tokens": 9,
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "temperature": 1,
    "top_p": 1,
    "top_k": 5,
    "stop_sequences": ["a"],
    "tools": [{"name": "f", "input_schema": SCHEMA, "strict": True}],
    "tool_choice": {"type": "tool", "name": "f"},
    "thinking": {"type": "enabled", "budget_tokens": 5},
    "metadata": {"user_id": "u"},
}
TOKENIZE = {"model": "m", "messages": HI, "add_special_tokens": True, "chat_template_kwargs": {"a": [{"b": 1}]}}
QUOTA = {"requests_per_minute": 1, "tokens_per_minute": 1, "requests_at_a_time": 1, "tokens_per_month": 1}
APIS = [
    Api("chat", chat, CHAT),
    Api("completions", completions, COMPLETION),
    Api("responses", responses, RESPONSE),
    Api("messages", messages, MESSAGES),
    Api("embeddings", embeddings, {"model": "m", "input": ["a"], "encoding_format": "float", "dimensions": 5}),
    Api("tokenize", tokenize, TOKENIZE),
    Api("detokenize", read_by(decode_detokenize), {"model": "m", "tokens": [1, 2]}),
    Api(
        "create_team",
        read_by(msgspec.json.Decoder(CreateTeamRequest)),
        {"name": "a", "models": ["m"], "weight": 1, "shares_answers": True, "quota": QUOTA},
    ),
    Api(
        "update_team", read_by(msgspec.json.Decoder(UpdateTeamRequest)), {"models": ["m"], "weight": 1, "quota": QUOTA}
    ),
    Api(
        "create_key",
        read_by(msgspec.json.Decoder(CreateKeyRequest)),
        {"team": "a", "label": "l", "expires_in_s": 5},
    ),
    Api("rotate_key", read_by(msgspec.json.Decoder(RotateKeyRequest)), {"grace_s": 5}),
]
each_api = pytest.mark.parametrize("api", APIS, ids=[api.name for api in APIS])


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value in a body, such as ("messages", 0, "content")."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield (*path, key)
        yield from paths_of(member, (*path, key))


def replaced(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the body with this value at the path."""
    if not path:
        return value
    key, *rest = path
    copy = dict(body) if isinstance(body, dict) else list(body)
    copy[key] = replaced(body[key], tuple(rest), value)
    return copy


def with_text(body: Any, path: tuple[Any, ...], text: bytes) -> bytes:
    """The body as JSON, with this text at the path, JSON or not."""
    return json.dumps(replaced(body, path, "HERE")).encode().replace(b'"HERE"', text)


def named(path: tuple[Any, ...]) -> str:
    """The path in the form that errors use."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def refusal(api: Api, model: ServedModel, body: bytes) -> ApiError | None:
    """The API's error, or None if it accepts the request, which must then be encodable. Any other exception fails the
    test."""
    try:
        for request in api.read(body, model):
            msgspec.msgpack.encode(request)
            for schema in (request.schema, *(tool.parameters for tool in request.tools)):
                SchemaPreparer("tools", LIMITS.schema_parts).prepare(schema or "{}", strict=True)
    except ApiError as error:
        assert error.status == 400 and error.message and error.body.error.type == "invalid_request_error"
        return error
    return None


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**30, 10**4000, 1e308, 5e-324])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=6,
)


@each_api
def test_a_valid_body_is_accepted(api: Api, bundled: ServedModel) -> None:
    assert refusal(api, bundled, json.dumps(api.body).encode()) is None


@pytest.mark.parametrize(("strict", "expected"), [(True, True), (False, False), (None, False)])
def test_a_schema_is_strict_if_the_request_says_so(bundled: ServedModel, strict: bool | None, expected: bool) -> None:
    spec = {"name": "s", "schema": SCHEMA, "strict": strict}
    of_chat = {"messages": CHAT["messages"], "response_format": {"type": "json_schema", "json_schema": spec}}
    of_responses = {"input": "hi", "text": {"format": {"type": "json_schema", **spec}}}
    for read, body in ((chat, of_chat), (responses, of_responses)):
        [request] = read(json.dumps({"model": "m", **body}).encode(), bundled)
        assert (request.strict_schema, json.loads(request.schema)) == (expected, SCHEMA)


@each_api
def test_any_json_in_any_field_is_accepted_or_refused(api: Api, bundled: ServedModel) -> None:
    paths = list(paths_of(api.body))

    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(paths), json_values)
    def check(path: tuple[Any, ...], value: Any) -> None:
        refusal(api, bundled, json.dumps(replaced(api.body, path, value)).encode())

    check()


@each_api
@pytest.mark.parametrize("number", [str(2**64), str(-(2**63) - 1), "1" * 30, "1" * 5000, "-" + "1" * 5000], ids=len)
def test_an_integer_beyond_64_bits_is_refused_by_its_field(api: Api, bundled: ServedModel, number: str) -> None:
    for path in paths_of(api.body):
        for where, text in ((path, number), ((*path, "x", 1), f'{{"x": [0, {number}]}}')):
            error = refusal(api, bundled, with_text(api.body, path, text.encode()))
            assert error is not None and error.body.error.param == named(where), where
            assert "between -2^63 and 2^64 - 1" in error.message


@each_api
@pytest.mark.parametrize("number", [2**64 - 1, -(2**63)])
def test_an_integer_of_64_bits_fails_nowhere(api: Api, bundled: ServedModel, number: int) -> None:
    for path in paths_of(api.body):
        refusal(api, bundled, with_text(api.body, path, b"%d" % number))


def test_long_digits_in_texts_are_no_integers(bundled: ServedModel) -> None:
    body = CHAT | {"messages": [{"role": "user", "content": "1" * 5000}]}
    long = with_text(body, ("temperature",), b"0.1234567890123456789012")
    assert refusal(APIS[0], bundled, long) is None


@each_api
@pytest.mark.parametrize(
    "text",
    [b"NaN", b"Infinity", b"-Infinity", b'"\\ud800"', b'"\\udc00x"', b'{"\\ud800": 1}', b'"\xed\xa0\x80"', b"1e999"],
    ids=["nan", "inf", "-inf", "high", "low", "key", "bytes", "1e999"],
)
def test_invalid_json_is_refused_in_every_field(api: Api, bundled: ServedModel, text: bytes) -> None:
    for path in paths_of(api.body):
        error = refusal(api, bundled, with_text(api.body, path, text))
        assert error is not None, path
        assert error.body.error.code == "invalid_json" or error.body.error.param


@each_api
@pytest.mark.parametrize("levels", [70, 900, 950, 970, 990, 100_000])
@pytest.mark.parametrize("number", [b"1", b"1" * 20])
def test_deep_nesting_fails_nowhere(api: Api, bundled: ServedModel, levels: int, number: bytes) -> None:
    for path in paths_of(api.body):
        for left, right in ((b"[", b"]"), (b'{"a":', b"}")):
            refusal(api, bundled, with_text(api.body, path, left * levels + number + right * levels))


@each_api
def test_a_key_may_come_twice(api: Api, bundled: ServedModel) -> None:
    body = json.dumps(api.body)
    for key, value in api.body.items():
        assert refusal(api, bundled, f'{{"{key}": {json.dumps(value)}, {body[1:]}'.encode()) is None, key
        error = refusal(api, bundled, f'{body[:-1]}, "{key}": {2**64}}}'.encode())
        assert error is not None and error.body.error.param == key


def test_a_key_that_outlives_every_calendar_is_refused(bundled: ServedModel) -> None:
    for api, field in (("create_key", "expires_in_s"), ("rotate_key", "grace_s")):
        [reader] = [reader for reader in APIS if reader.name == api]
        error = refusal(reader, bundled, json.dumps(reader.body | {field: 1e12}).encode())
        assert error is not None and error.body.error.param == field


def test_responses_name_their_own_fields() -> None:
    for param, own in (("messages", "input"), ("response_format", "text.format"), ("tools", "tools"), (None, None)):
        assert response_error(ApiError(400, "no", param=param)).error.param == own
