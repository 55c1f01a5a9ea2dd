"""Responses in the background: followed, cancelled, lost and bounded; with real routers and a real Redis."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest
import redis

from cluster.records.responses import clear_responses, running_key
from cluster.redis_server import OwnRedis
from cluster.settings import ResponseSettings
from deployments.api.fast_path import CacheFastPath
from deployments.cache.response_store import ResponseStore, StoredResponse, new_response_id
from deployments.common.redis import RedisCallbacks, RedisStore
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import Engines, RunningRouter, running_router

PATH = "/v1/responses"
OWNER = "default"
"""Of what callers store while no key is needed."""


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


@pytest.fixture
def opened(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Opens a router whose engines wait for `go`, and a client of it."""

    @asynccontextmanager
    async def open_router(**settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Engines, RunningRouter]]:
        engines = Engines(blocked=asyncio.Event())
        assert engines.blocked is not None
        async with (
            running_router(monkeypatch, server.url, engines=engines, data_dir=tmp_path, **settings) as router,
            httpx.AsyncClient(base_url=router.url, timeout=30) as client,
        ):
            try:
                yield client, engines, router
            finally:
                engines.blocked.set()  # the router waits for what it generates

    return open_router


def body_of(question: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": question, "temperature": 0, "background": True, **fields}


async def begin(client: httpx.AsyncClient, question: str, **fields: Any) -> dict[str, Any]:
    answer = await client.post(PATH, json=body_of(question, **fields))
    assert answer.status_code == 200, answer.text
    response: dict[str, Any] = answer.json()
    return response


async def ended(client: httpx.AsyncClient, response_id: str) -> dict[str, Any]:
    """The response once it runs no more."""
    while True:
        answer = await client.get(f"{PATH}/{response_id}")
        assert answer.status_code == 200, answer.text
        if answer.json()["status"] not in ("queued", "in_progress"):
            response: dict[str, Any] = answer.json()
            return response
        await asyncio.sleep(0.02)


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def test_a_response_is_followed_to_its_end(opened: Any) -> None:
    async def work() -> None:
        async with opened() as (client, engines, _):
            begun = await begin(client, "3+4?", metadata={"a": "b"})
            assert (begun["status"], begun["background"], begun["output"]) == ("queued", True, [])
            assert (begun["usage"], begun["error"], begun["store"]) == (None, None, True)
            assert (await client.get(f"{PATH}/{begun['id']}")).json() == begun
            before = (await client.get(f"{PATH}/{begun['id']}/input_items")).json()
            refused = await client.post(PATH, json=body_of("And?", previous_response_id=begun["id"], background=False))
            assert refused.json()["error"]["code"] == "previous_response_not_completed"
            engines.blocked.set()
            done = await ended(client, begun["id"])
            assert done["status"] == "completed" and done["usage"]["output_tokens"] == 3
            assert done | {"status": 0, "output": 0, "usage": 0} == begun | {"status": 0, "output": 0, "usage": 0}
            # It is a response like any other: its answer is cached, and a conversation goes on from it.
            plain = await client.post(PATH, json=body_of("3+4?", background=False))
            assert plain.headers["x-dray-cache"] == "hit"
            texts = [
                [part["text"] for item in each["output"] for part in item["content"]] for each in (plain.json(), done)
            ]
            assert texts[0] == texts[1]
            items = (await client.get(f"{PATH}/{begun['id']}/input_items")).json()
            assert items == before and items["data"][0]["content"][0]["text"] == "3+4?"
            going_on = await client.post(PATH, json=body_of("And?", previous_response_id=begun["id"], background=False))
            assert going_on.status_code == 200
            stored = await begin(client, "3+4?")
            assert stored["status"] == "completed" and stored["background"] is True
            assert (await client.get(f"{PATH}/{stored['id']}")).json() == stored

    asyncio.run(work())


def test_its_events_are_streamed_and_its_client_may_leave(opened: Any) -> None:
    async def work() -> None:
        async with opened(router={"keep_alive_s": 0.2}) as (client, engines, _):
            async with client.stream("POST", PATH, json=body_of("3+4?", stream=True)) as stream:
                lines = stream.aiter_lines()
                first = [await anext(lines) for _ in range(2)]
                while not (await anext(lines)).startswith(": keep-alive"):
                    pass
            left = json.loads(first[1][6:])["response"]["id"]  # closed here, in the middle
            engines.blocked.set()
            assert (await ended(client, left))["status"] == "completed"
            engines.blocked.clear()
            async with client.stream("POST", PATH, json=body_of("5+6?", stream=True)) as stream:
                assert stream.headers["content-type"].startswith("text/event-stream")
                engines.blocked.set()
                events = events_of((await stream.aread()).decode())
            assert [event["sequence_number"] for event in events] == [*range(len(events))]
            kinds = [event["type"] for event in events]
            assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
            last = events[-1]["response"]
            assert events[0]["response"]["id"] == last["id"]
            assert (await client.get(f"{PATH}/{last['id']}")).json() == last

    asyncio.run(work())


def test_openais_client_follows_and_cancels(opened: Any) -> None:
    async def work() -> None:
        async with (
            opened() as (_, engines, router),
            openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0) as client,
        ):
            response = await client.responses.create(model=MODEL, input="3+4?", background=True)
            assert response.status == "queued"
            cancelled = await client.responses.cancel(response.id)
            assert cancelled.status == "cancelled" and (await client.responses.retrieve(response.id)) == cancelled
            engines.blocked.set()
            response = await client.responses.create(model=MODEL, input="5+6?", background=True)
            while response.status in ("queued", "in_progress"):
                response = await client.responses.retrieve(response.id)
            assert response.status == "completed" and response.output
            # As OpenAI has it, cancelling what has ended changes nothing.
            assert (await client.responses.cancel(response.id)) == response
            assert (await client.responses.cancel(cancelled.id)) == cancelled

    asyncio.run(work())


@pytest.mark.parametrize("verb", ["cancel", "delete"])
def test_cancelling_stops_the_work_on_any_router(opened: Any, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def remove(client: httpx.AsyncClient, response_id: str) -> httpx.Response:
        path = f"{PATH}/{response_id}"
        return await (client.post(f"{path}/cancel") if verb == "cancel" else client.delete(path))

    async def work() -> None:
        async with opened() as (client, engines, _), opened() as (other, *_):
            # There is one fast path in a process, and here are two routers.
            monkeypatch.setattr(CacheFastPath, "api", None)
            for asked in (client, other):
                before, response = engines.cancelled, await begin(client, f"{asked.base_url}?")
                assert (await remove(asked, response["id"])).status_code == 200
                while engines.cancelled == before:
                    await asyncio.sleep(0.02)
                answer = await client.get(f"{PATH}/{response['id']}")
                if verb == "cancel":
                    assert answer.json()["status"] == "cancelled"
                else:
                    assert answer.status_code == 404

    asyncio.run(work())


def test_only_what_is_in_the_background_can_be_cancelled(opened: Any) -> None:
    async def work() -> None:
        async with opened() as (client, engines, _):
            engines.blocked.set()
            plain = await client.post(PATH, json=body_of("3+4?", background=False))
            refused = await client.post(f"{PATH}/{plain.json()['id']}/cancel")
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "response_not_in_background")
            for other in ("resp_x", new_response_id()):
                assert (await client.post(f"{PATH}/{other}/cancel")).status_code == 404

    asyncio.run(work())


def test_a_response_whose_router_has_died_has_failed(opened: Any, server: OwnRedis) -> None:
    """Its lease is all that another router knows of it: a dead one does not renew that."""

    async def work() -> None:
        store = RedisStore("answers", server.url, 2, RedisCallbacks(lambda: None, lambda is_open: None))
        dead = ResponseStore(ResponseSettings(), store, lease_s=60)
        async with opened() as (client, *_):
            like = await begin(client, "3+4?")
            response = like | {"id": new_response_id()}
            assert await dead.begin(OWNER, response["id"], StoredResponse(msgspec.json.encode(response), ()))
            path = f"{PATH}/{response['id']}"
            assert (await client.get(path)).json()["status"] == "queued"
            await store.execute("ZADD", running_key(OWNER), 1, response["id"])  # its time is over
            failed = await ended(client, response["id"])
            assert failed["status"] == "failed" and "router" in failed["error"]["message"]
            assert (await client.get(path)).json() == failed
            # A router that was only slow finds that its lease is gone.
            assert not await dead.renew(OWNER, response["id"])
            assert not await dead.end(OWNER, response["id"], StoredResponse(msgspec.json.encode(like), ()))
            assert (await client.get(path)).json() == failed
            assert (await client.get(f"{PATH}/{like['id']}")).json()["status"] == "queued"
        await store.close()

    asyncio.run(work())


def test_a_router_that_stops_waits_for_its_responses_and_says_what_it_left(opened: Any, server: OwnRedis) -> None:
    async def work() -> None:
        async with opened() as (client, *_):
            finished = await begin(client, "3+4?")
        async with opened() as (client, _, router):
            assert (await client.get(f"{PATH}/{finished['id']}")).json()["status"] == "completed"
            router.router._inference.background._drain_s = 0.05
            left = await begin(client, "5+6?")
            await router.router._inference.background.close()
            failed = (await client.get(f"{PATH}/{left['id']}")).json()
            assert failed["status"] == "failed" and "stopped" in failed["error"]["message"]

    asyncio.run(work())


def test_what_goes_wrong_is_said_at_once_or_by_the_response(opened: Any) -> None:
    async def work() -> None:
        async with opened(limits={"request_timeout_s": 2}) as (client, *_):
            long = await client.post(PATH, json=body_of("word " * 4000))
            assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
            late = await ended(client, (await begin(client, "3+4?"))["id"])
            assert late["status"] == "failed" and "Not finished within the time" in late["error"]["message"]

    asyncio.run(work())


def test_what_is_too_large_to_store_has_failed(opened: Any) -> None:
    async def work() -> None:
        async with opened(responses={"max_bytes": 1300}) as (client, engines, _):
            engines.tokens = (40,) * 500
            begun = await begin(client, "3+4?")
            engines.blocked.set()
            failed = await ended(client, begun["id"])
            assert failed["status"] == "failed" and "max_bytes" in failed["error"]["message"]
            answer = await client.post(PATH, json=body_of("5+6?", stream=True))
            last = events_of(answer.text)[-1]["response"]
            assert (last["status"], last["store"]) == ("completed", False)

    asyncio.run(work())


def test_their_number_is_bounded(opened: Any, server: OwnRedis) -> None:
    async def work() -> None:
        async with opened(responses={"max_background": 2}) as (client, engines, _):
            first, second = [await begin(client, f"{number}?") for number in range(2)]
            refused = await client.post(PATH, json=body_of("2?"))
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert refused.headers["retry-after"]
            await client.post(f"{PATH}/{first['id']}/cancel")
            third = await begin(client, "3?")
            engines.blocked.set()
            assert {(await ended(client, each["id"]))["status"] for each in (second, third)} == {"completed"}
            assert (await begin(client, "4?"))["id"]
            with redis.Redis.from_url(server.url) as store:
                clear_responses(store)
                assert not list(store.scan_iter(match="dray:response*"))

    asyncio.run(work())


@pytest.mark.parametrize(
    ("settings", "fields", "reason"),
    [
        ({}, {"store": False}, "store: false"),
        ({"responses": {"store": False}}, {}, "none are stored here"),
        ({"cache": {"enabled": False}}, {}, "none are stored here"),
        ({"responses": {"max_bytes": 2000}}, {"instructions": "x" * 2000}, "max_bytes"),
    ],
)
def test_without_a_store_it_is_refused(opened: Any, settings: Any, fields: dict[str, Any], reason: str) -> None:
    async def work() -> None:
        async with opened(**settings) as (client, engines, _):
            for stream in (False, True):
                answer = await client.post(PATH, json=body_of("3+4?", stream=stream, **fields))
                error = answer.json()["error"]
                assert (answer.status_code, error["param"]) == (400, "background") and reason in error["message"]
            assert engines.requests == 0

    asyncio.run(work())


def test_while_redis_is_away_it_is_refused(opened: Any, server: OwnRedis) -> None:
    async def work() -> None:
        async with opened(cache={"timeout_s": 0.5}) as (client, _, router):
            router.router._inference.background._drain_s = 0.05  # no Redis will come
            running = await begin(client, "3+4?")
            server.stop()
            answer = await client.post(PATH, json=body_of("5+6?"))
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "responses_unavailable")
            answer = await client.post(f"{PATH}/{running['id']}/cancel")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "responses_unavailable")

    asyncio.run(work())
