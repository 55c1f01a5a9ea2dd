"""What is known is answered in front of Serve; all else reaches it as it came."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from deployments.api.fast_path import KNOWN_ONLY, CacheFastPath, NotKnown

PARTS = [b'{"model": ', b'"dray-demo"', b"}"]


@pytest.fixture
def router() -> Iterator[None]:
    """A router that knows an answer where the body ends in a brace, and reads all of it to see that."""
    CacheFastPath.app, CacheFastPath.routes = knowing, frozenset({"/v1/chat/completions"})
    yield
    CacheFastPath.app, CacheFastPath.routes = None, frozenset()


async def knowing(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope[KNOWN_ONLY]
    scope["route"] = "written by the router"
    if not (await body_of(receive)).endswith(b"}"):
        raise NotKnown
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def body_of(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message["body"])
        if not message["more_body"]:
            return b"".join(parts)


def ask(parts: list[bytes], **more: Any) -> tuple[list[Message], list[tuple[Scope, bytes]]]:
    """What a client is sent, and what has reached Serve: scopes and bodies."""
    sent: list[Message] = []
    reached: list[tuple[Scope, bytes]] = []
    coming = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    coming[-1]["more_body"] = False

    async def receive() -> Message:
        return coming.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append((scope, await body_of(receive)))

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [(b"x-request-id", b"7")]}
    asyncio.run(CacheFastPath(serve)({**scope, **more}, receive, send))
    return sent, reached


def test_a_known_answer_does_not_reach_serve(router: None) -> None:
    sent, reached = ask(PARTS)
    assert reached == []
    assert sent[0]["headers"] == [(b"x-request-id", b"7")]
    sent, _ = ask(PARTS, headers=[])
    [(name, value)] = sent[0]["headers"]
    assert name == b"x-request-id" and len(value) == 32


def test_what_is_not_known_reaches_serve_as_it_came(router: None) -> None:
    sent, reached = ask([*PARTS, b" "])
    assert sent == []
    [(scope, body)] = reached
    assert body == b"".join(PARTS) + b" "
    assert scope.keys() == {"type", "method", "path", "headers"}


@pytest.mark.parametrize("more", [{"method": "GET"}, {"path": "/metrics"}, {"type": "lifespan"}])
def test_other_requests_are_serves_alone(router: None, more: dict[str, Any]) -> None:
    assert len(ask(PARTS, **more)[1]) == 1
