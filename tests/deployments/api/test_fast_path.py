"""The fast path in front of Serve: it answers from the cache, and every other request reaches Serve."""

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.fast_path import PREPARED_REQUEST, CacheFastPath
from deployments.api.prepared import PreparedRequest

PATH = "/v1/chat/completions"
BODY = [b'{"model": ', b'"dray-demo"', b"}"]


class Api:
    """An API that has a stored answer to each body that ends in a brace."""

    paths = frozenset({PATH})
    prepared = PreparedRequest((), cast(Any, None), stream=False, headers={}, choices=(), at=cast(Any, None))

    async def lookup(self, http: Request) -> Response | PreparedRequest:
        return Response(b"stored") if (await http.body()).endswith(b"}") else self.prepared


class Recorder:
    """Keeps the scopes of the requests that it was asked to record."""

    def __init__(self) -> None:
        self.recorded: list[Scope] = []

    async def record(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        self.recorded.append(scope)
        await app(scope, receive, send)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    monkeypatch.setattr(CacheFastPath, "api", Api())
    monkeypatch.setattr(CacheFastPath, "recorder", recorder := Recorder(), raising=False)
    yield recorder


def ask(body: list[bytes], **more: Any) -> tuple[list[Message], list[Scope]]:
    """Sends a request; returns the response, and the scopes that reach Serve."""
    sent: list[Message] = []
    reached: list[Scope] = []
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in body]
    messages[-1]["more_body"] = False

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope)

    scope = {"type": "http", "method": "POST", "path": PATH, "headers": [(b"x-request-id", b"7")]}
    asyncio.run(CacheFastPath(serve)({**scope, **more}, receive, send))
    return sent, reached


def test_a_stored_answer_does_not_reach_serve(recorder: Recorder) -> None:
    sent, reached = ask(BODY)
    assert sent[1]["body"] == b"stored" and reached == []
    assert (b"x-request-id", b"7") in sent[0]["headers"]
    assert len(recorder.recorded) == 1


@pytest.mark.parametrize("headers", [[], [(b"x-request-id", b"")]])
def test_a_request_without_an_id_gets_one(recorder: Recorder, headers: list[tuple[bytes, bytes]]) -> None:
    sent, _ = ask(BODY, headers=headers)
    [identity] = [value for name, value in sent[0]["headers"] if name == b"x-request-id"]
    assert len(identity) == 32
    _, [scope] = ask([*BODY, b" "], headers=headers)
    [(name, identity)] = scope["headers"]
    assert name == b"x-request-id" and len(identity) == 32, "Serve and the log use the same id"


def test_without_a_stored_answer_the_prepared_request_reaches_serve(recorder: Recorder) -> None:
    sent, [scope] = ask([*BODY, b" "])
    assert sent == []
    assert scope[PREPARED_REQUEST] is Api.prepared
    assert scope["path"] == PATH and scope["headers"] == [(b"x-request-id", b"7")]
    assert recorder.recorded == [scope], "recorded once, by the outermost layer"


@pytest.mark.parametrize("more", [{"method": "GET"}, {"path": "/metrics"}, {"type": "lifespan"}])
def test_other_requests_are_left_to_serve(recorder: Recorder, more: dict[str, Any]) -> None:
    _, [scope] = ask(BODY, **more)
    assert PREPARED_REQUEST not in scope and recorder.recorded == []
