"""A client that disconnects is a 499 in metrics and logs, in every route and whenever it happens; never a 500."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from cluster.records.team_records import ADMIN, Team
from cluster.records.team_tables import unlock
from cluster.records.teams import add_team, create_key, remove_team
from cluster.redis_client import connect
from cluster.redis_server import OwnRedis
from deployments.api.middleware import RequestRecorder
from deployments.observability.metrics import RouterMetrics
from deployments.observability.tracing import Traces
from deployments.tenancy.activity import ActivityLog
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import store_at
from tests.deployments.routers import Engines, RunningRouter, chat, running_router
from tests.deployments.waiting import until

ROUTES = [
    ("POST", "/v1/chat/completions", "/v1/chat/completions"),
    ("POST", "/v1/completions", "/v1/completions"),
    ("POST", "/v1/responses", "/v1/responses"),
    ("POST", "/v1/messages", "/v1/messages"),
    ("POST", "/v1/embeddings", "/v1/embeddings"),
    ("POST", "/tokenize", "/tokenize"),
    ("POST", "/detokenize", "/detokenize"),
    ("POST", "/admin/teams", "/admin/teams"),
    ("PATCH", "/admin/teams/{name}", "/admin/teams/x"),
    ("POST", "/admin/keys", "/admin/keys"),
    ("POST", "/admin/keys/{id}/rotate", "/admin/keys/x/rotate"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


@pytest.fixture(autouse=True)
def logs(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "dray")
    return caplog


def head(method: str, path: str, length: int, key: str = "") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {length}", *([f"Authorization: Bearer {key}"] if key else [])]
    return "\r\n".join([*lines, "", ""]).encode()


async def send_and_leave(router: RunningRouter, sent: bytes, after: Callable[[], object] | None = None) -> None:
    """Sends these bytes and closes the connection. after: a fact to wait for before that."""
    _, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(sent)
    await writer.drain()
    if after is not None:
        await until(after)
    else:
        await asyncio.sleep(0.05)  # long enough for the request to reach the application
    writer.close()
    await writer.wait_closed()


def counted(router: RunningRouter, route: str) -> bool:
    return (route, "499") in router.counted()


@pytest.fixture
def keys(server: OwnRedis) -> Iterator[tuple[str, str]]:
    """A team's key and an admin key. Afterwards no key is needed again."""
    with connect(server.url) as client:
        add_team(client, Team("support", 0.0))
        yield create_key(client, "support").secret, create_key(client, ADMIN).secret
        remove_team(client, "support")
        unlock(client)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("begun", [False, True])
def test_leaving_in_the_upload(
    server: OwnRedis,
    keys: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    begun: bool,
    cached: bool,
) -> None:
    async def work() -> None:
        async with running_router(monkeypatch, server.url, cache={"enabled": cached}) as router:
            monkeypatch.setattr(logging.getLogger("dray"), "propagate", True)  # the router has turned it off
            for method, route, path in ROUTES:
                caplog.clear()
                body = b'{"model": "dray-demo", ' if begun else b""
                await send_and_leave(router, head(method, path, 1000, keys[path.startswith("/admin")]) + body)
                await until(partial(counted, router, route))
                [record] = (record for record in caplog.records if record.name.startswith("dray"))
                assert (record.getMessage(), record.levelno) == ("request not answered", logging.INFO)
                assert (record.__dict__["route"], record.__dict__["status"]) == (route, 499)
            assert router.counted() == {(route, "499"): 1 for _, route, _ in ROUTES}
            assert router.engines.requests == 0

    asyncio.run(work())


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("cached", [True, False])
def test_leaving_before_the_answer(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stream: bool, cached: bool
) -> None:
    async def work() -> None:
        engines = Engines(blocked=asyncio.Event())
        async with running_router(monkeypatch, server.url, engines=engines, cache={"enabled": cached}) as router:
            monkeypatch.setattr(logging.getLogger("dray"), "propagate", True)  # the router has turned it off
            body = chat(f"hi {stream} {cached}", stream=stream)
            sent = head("POST", "/v1/chat/completions", len(body)) + body
            await send_and_leave(router, sent, after=lambda: engines.requests)
            await until(router.counted)
            assert router.counted() == {("/v1/chat/completions", "499"): 1}
            await until(lambda: engines.cancelled)
            assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

    asyncio.run(work())


@pytest.mark.parametrize(("complete", "status"), [(False, "499"), (True, "200")])
def test_a_request_that_serve_cancels_is_a_499_unless_its_response_was_complete(complete: bool, status: str) -> None:
    """Serve cancels the handlers that do not watch their client themselves, such as that of embeddings."""
    metrics = RouterMetrics()
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": []}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if complete:
            await Response(b"[]")(scope, receive, send)
        await asyncio.Event().wait()

    async def ignore(message: Message) -> None:
        pass

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def work() -> None:
        activity = ActivityLog(store_at("redis://127.0.0.1:1"), "x")
        recorder = RequestRecorder(metrics, Traces("dray-router", "x"), activity)
        request = asyncio.create_task(recorder.record(app, scope, receive, ignore))
        await asyncio.sleep(0)
        request.cancel()
        await asyncio.wait({request})

    asyncio.run(work())
    assert [labels[1] for labels in metrics.requests] == [status]


def test_a_client_that_stays_is_not_counted_as_gone(server: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with running_router(monkeypatch, server.url) as router:
            for stream in (False, True, False, True):
                reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
                body = chat("hello", stream=stream)
                writer.write(head("POST", "/v1/chat/completions", len(body)) + body)
                received = await reader.readuntil(b"[DONE]" if stream else b"}]")
                assert received.startswith(b"HTTP/1.1 200")
                writer.close()
            await until(lambda: sum(router.counted().values()) == 4)
            assert router.counted() == {("/v1/chat/completions", "200"): 4}

    asyncio.run(work())
