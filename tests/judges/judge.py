"""Holds what Dray answers against OpenAI's OpenAPI document and the types of Anthropic's SDK, whoever has asked.

`JudgedApp` goes around the router of the unit tests, `JudgedTransport` below the clients of a running Dray; so every
answer, chunk and event that these tests see is judged. `openai.json` is a part of OpenAI's document: see cut_openai.py.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator, ValidationError
from pydantic import TypeAdapter
from pydantic import ValidationError as WrongType
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_DOCUMENT = Path(__file__).with_name("openai.json")
_WHOLE = {
    r"POST /v1/chat/completions": "CreateChatCompletionResponse",
    r"POST /v1/completions": "CreateCompletionResponse",
    r"POST /v1/responses": "Response",
    r"GET /v1/responses/[^/]+": "Response",
    r"POST /v1/responses/[^/]+/cancel": "Response",
    r"GET /v1/responses/[^/]+/input_items": "ResponseItemList",
    r"POST /v1/responses/input_tokens": "TokenCountsResource",
    r"POST /v1/embeddings": "CreateEmbeddingResponse",
    r"GET /v1/models": "ListModelsResponse",
    r"GET /v1/models/.+": "Model",
}
_EVENTS = {
    r"POST /v1/chat/completions": "CreateChatCompletionStreamResponse",
    r"POST /v1/completions": "CreateCompletionResponse",
    r"(POST|GET) /v1/responses.*": "ResponseStreamEvent",
}
_ON_PURPOSE = (
    # OpenAI's server sends these too, against its document: the answer has not ended;
    (r"POST /v1/completions", "text/event-stream", r"choices\.\d+\.finish_reason: None is not"),
    # other chunks than the last have no usage yet, where that has it, and no response that has only begun;
    (r"POST /v1/completions", "text/event-stream", r"usage: None is not"),
    (r"(POST|GET) /v1/responses.*", "text/event-stream", r"response\.usage: None is not"),
    # vectors are base64 where the request wants them so;
    (r"POST /v1/embeddings", "application/json", r"data\.\d+\.embedding: '"),
    # with echo, nothing is before the first token; and with logprobs: 0, no likely ones are asked for.
    (r"POST /v1/completions", "", r"choices\.\d+\.logprobs\.(token|top)_logprobs\.0: None is not"),
    (r"POST /v1/completions", "", r"choices\.\d+\.logprobs\.top_logprobs: None is not"),
)
"""Where Dray differs from OpenAI's document on purpose: the request, the kind of answer, and the fault."""
_UNFINISHED = ("queued", "in_progress", "failed", "cancelled")
"""Statuses of responses without usage."""


def faults_of(method: str, path: str, status: int, content_type: str, body: bytes) -> list[str]:
    """What is wrong with an answer; nothing for a route that is neither OpenAI's nor Anthropic's."""
    asked = f"{method} {path.rstrip('/')}"
    if path.startswith("/v1/messages"):
        faults = _anthropic_faults(asked, status, content_type, body)
    elif status >= 400 and (path.startswith("/v1/") and content_type.startswith("application/json")):
        faults = _openai_faults("ErrorResponse", body)
    elif status == 200 and content_type.startswith("application/json"):
        faults = [fault for name in _match(_WHOLE, asked) for fault in _openai_faults(name, body)]
    elif status == 200 and content_type.startswith("text/event-stream"):
        events = [event for _ in _match(_EVENTS, asked) for event in _events(body)]
        faults = [fault for event in events for fault in _openai_faults(_schema_of_event(asked, event), event)]
    else:
        faults = []
    on_purpose = [
        fault for request, kind, fault in _ON_PURPOSE if re.fullmatch(request, asked) and content_type.startswith(kind)
    ]
    return [f"{asked}: {fault}" for fault in faults if not any(re.match(pattern, fault) for pattern in on_purpose)]


def _match(names: dict[str, str], asked: str) -> Iterator[str]:
    return (name for pattern, name in names.items() if re.fullmatch(pattern, asked))


def _schema_of_event(asked: str, event: bytes) -> str:
    if b'{"error":' in event[:16]:
        return "ErrorResponse"
    return next(_match(_EVENTS, asked))


def _events(body: bytes) -> list[bytes]:
    """The data of the whole events; a client may have left in the middle of one."""
    whole = body[: body.rfind(b"\n\n") + 1]
    return [line[6:] for line in whole.split(b"\n") if line.startswith(b"data: ") and line != b"data: [DONE]"]


@cache
def _schemas() -> dict[str, Any]:
    components: dict[str, Any] = json.loads(_DOCUMENT.read_text())
    return components


@cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({**_schemas(), "$ref": f"#/components/schemas/{name}"})


@cache
def _event_names() -> dict[str, str]:
    """The schema of each event of responses by its type: a fault of one is no fault of twenty."""
    schemas = _schemas()["components"]["schemas"]
    options = [option["$ref"].rpartition("/")[2] for option in schemas["ResponseStreamEvent"]["anyOf"]]
    return {schemas[name]["properties"]["type"]["enum"][0]: name for name in options}


def _openai_faults(name: str, body: bytes) -> list[str]:
    value = json.loads(body)
    for response in (value, value.get("response")) if isinstance(value, dict) else ():
        if isinstance(response, dict) and response.get("status") in _UNFINISHED and response.get("usage") is None:
            del response["usage"]  # null, as OpenAI's server sends it against its document
        # Responses repeat the request's tools, and Codex sends some that the document does not know.
        if isinstance(response, dict) and isinstance(tools := response.get("tools"), list):
            response["tools"] = [tool for tool in tools if tool.get("type") != "namespace"]
    if name == "ResponseStreamEvent":
        name = _event_names().get(value.get("type"), name)
    errors = [each for error in _validator(name).iter_errors(value) for each in _leaves(error)]
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors]


def _leaves(error: ValidationError) -> Iterator[ValidationError]:
    """What is wrong, where: of a union, the faults of the option that the value is meant for, which go deepest."""
    options: defaultdict[object, list[ValidationError]] = defaultdict(list)
    for inner in error.context or ():
        options[inner.schema_path[0]] += _leaves(inner)
    if not options:
        yield error
        return
    yield from max(options.values(), key=lambda errors: max(len(each.absolute_path) for each in errors))


@cache
def _anthropic(name: str) -> TypeAdapter[Any]:
    from anthropic import types  # slow

    return TypeAdapter(getattr(types, name))


def _anthropic_faults(asked: str, status: int, content_type: str, body: bytes) -> list[str]:
    if content_type.startswith("text/event-stream"):
        events = [event for event in _events(body) if event != b'{"type":"ping"}']
        names = ["ErrorResponse" if b'"error"' in event[:24] else "RawMessageStreamEvent" for event in events]
        documents = [*zip(names, events, strict=True)]
    elif content_type.startswith("application/json"):
        whole = "MessageTokensCount" if asked.endswith("/count_tokens") else "Message"
        documents = [(whole if status == 200 else "ErrorResponse", body)]
    else:
        documents = []
    faults = []
    for name, document in documents:
        try:
            _anthropic(name).validate_json(document, strict=True)
        except WrongType as error:
            faults += [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    return faults


class JudgedApp:
    """An ASGI application whose answers are kept, to be judged when it has ended: not while its loop serves others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._answers: list[tuple[str, str, int, str, bytes]] = []

    @property
    def faults(self) -> list[str]:
        """What was wrong with the answers."""
        return [fault for answer in self._answers for fault in faults_of(*answer)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: dict[str, Any] = {}
        body = bytearray()

        async def pass_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                body.extend(message.get("body", b""))
            await send(message)

        method, path = scope["method"], scope["path"]
        try:
            await self._app(scope, receive, pass_on)
        finally:
            headers = {name.lower(): value for name, value in start.get("headers", ())}
            if start and b"content-encoding" not in headers:
                kind = headers.get(b"content-type", b"").decode()
                self._answers.append((method, path, start["status"], kind, bytes(body)))


class JudgedTransport(httpx.HTTPTransport):
    """A transport whose answers are judged: whole ones where a test has read them, and the events that it has read."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        assert isinstance(response.stream, httpx.SyncByteStream)
        if "content-encoding" not in response.headers:
            response.stream = _Tee(response.stream, request, response)
        return response


class _Tee(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, request: httpx.Request, response: httpx.Response) -> None:
        self._stream, self._request, self._response = stream, request, response
        self._body = bytearray()

    def __iter__(self) -> Iterator[bytes]:
        for part in self._stream:
            self._body.extend(part)
            yield part
        self._judge()

    def close(self) -> None:
        self._stream.close()
        # OpenAI's client reads a stream up to its last event, and not to its end.
        if self._response.headers.get("content-type", "").startswith("text/event-stream"):
            self._judge()

    def _judge(self) -> None:
        kind, asked, body = self._response.headers.get("content-type", ""), self._request, bytes(self._body)
        self._body.clear()
        faults = faults_of(asked.method, asked.url.path, self._response.status_code, kind, body)
        assert not faults, "\n".join(faults[:9])
