"""Responses that are stored: gone on from, read, listed, deleted, and bounded; with a real router and a real Redis."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import redis

from cluster.records.responses import clear_responses
from cluster.redis_server import OwnRedis
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import Engines, asking, running_router

PATH = "/v1/responses"


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


def body_of(question: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": question, "temperature": 0, **fields}


async def ask(client: httpx.AsyncClient, question: str, **fields: Any) -> dict[str, Any]:
    answer = await client.post(PATH, json=body_of(question, **fields))
    assert answer.status_code == 200, answer.text
    if not fields.get("stream"):
        response: dict[str, Any] = answer.json()
        return response
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    last: dict[str, Any] = events[-1]["response"]
    assert events[0]["response"]["id"] == last["id"]
    return last


def test_what_is_stored_is_what_was_sent(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whole and streamed, generated and from the cache."""

    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path) as client:
            for stream in (False, True, False, True):
                response = await ask(client, "3+4?", stream=stream)
                assert response["store"] is True
                assert (await client.get(f"{PATH}/{response['id']}")).json() == response
            fresh = {"Cache-Control": "no-cache, no-store"}
            answer = await client.post(PATH, json=body_of("3+4?", stream=True), headers=fresh)
            last = json.loads(answer.text.strip().splitlines()[-1].removeprefix("data: "))["response"]
            assert (await client.get(f"{PATH}/{last['id']}")).json() == last

    asyncio.run(work())


def test_a_request_goes_on_from_a_stored_response(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path) as client:
            first = await ask(client, "3+4?", instructions="Be brief.")
            following = body_of("And 5?", previous_response_id=first["id"])
            second = await client.post(PATH, json=following)
            assert second.json()["previous_response_id"] == first["id"]
            third = await client.post(PATH, json=body_of("Sure?", previous_response_id=second.json()["id"]))
            users = [{"role": "user", "content": text} for text in ("3+4?", "And 5?", "Sure?")]
            # The instructions were the first request's own.
            whole = [users[0], *first["output"], users[1]]
            counted = await client.post(f"{PATH}/input_tokens", json=following)
            assert counted.json()["input_tokens"] == second.json()["usage"]["input_tokens"]
            for answer, conversation in ((second, whole), (third, [*whole, *second.json()["output"], users[2]])):
                same = await client.post(PATH, json=body_of("") | {"input": conversation})
                assert same.headers["x-dray-cache-key"] == answer.headers["x-dray-cache-key"]
            # A later response does not need the earlier ones.
            assert (await client.delete(f"{PATH}/{first['id']}")).json()["deleted"] is True
            assert (await client.post(PATH, json=following)).status_code == 400
            again = await client.post(PATH, json=body_of("Sure?", previous_response_id=second.json()["id"]))
            assert again.headers["x-dray-cache"] == "hit"

    asyncio.run(work())


def test_openais_client_reads_what_is_stored(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            running_router(monkeypatch, server.url, engines=Engines(), data_dir=tmp_path) as router,
            openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0) as client,
        ):
            first = await client.responses.create(model=MODEL, input="3+4?", store=True)
            second = await client.responses.create(model=MODEL, input="And 5?", previous_response_id=first.id)
            assert (await client.responses.retrieve(second.id)) == second
            items = [item async for item in client.responses.input_items.list(second.id, limit=1, order="asc")]
            kinds = [item.type for item in first.output]
            assert [item.type for item in items] == ["message", *kinds, "message"]
            assert len({item.id for item in items}) == len(items)
            newest = await client.responses.input_items.list(second.id, limit=2)
            assert [item.id for item in newest.data] == [item.id for item in items[-1:-3:-1]]
            await client.responses.delete(first.id)
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(first.id)

    asyncio.run(work())


def test_the_number_size_and_time_of_what_is_stored_are_bounded(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bounds = {"max_per_team": 3, "max_bytes": 6000, "ttl_s": 500}

    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path, responses=bounds) as client:
            ids = [(await ask(client, f"{number}?"))["id"] for number in range(5)]
            found = [(await client.get(f"{PATH}/{each}")).status_code for each in ids]
            assert found == [404, 404, 200, 200, 200]
            with redis.Redis.from_url(server.url) as store:
                keys = list(store.scan_iter(match="dray:response*"))
                assert len(keys) == 4 and all(0 < store.ttl(key) <= 500 for key in keys)
            for stream in (False, True):
                large = await ask(client, "word " * 1300, stream=stream)
                assert large["store"] is False
                assert (await client.get(f"{PATH}/{large['id']}")).status_code == 404
            # What grows beyond the bound by its history is answered and not stored.
            response = await ask(client, "word " * 250)
            while response["store"]:
                response = await ask(client, "word " * 80, previous_response_id=response["id"])
            assert response["status"] in ("completed", "incomplete")

    asyncio.run(work())


def test_an_operator_can_remove_what_is_stored(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path) as client:
            paths = [f"{PATH}/{(await ask(client, f'{number}?'))['id']}" for number in range(3)]
            with redis.Redis.from_url(server.url) as store:
                assert clear_responses(store, "team.default") == 0
                assert (await client.get(paths[0])).status_code == 200
                assert clear_responses(store, "default") == 3
                assert [(await client.get(path)).status_code for path in paths] == [404, 404, 404]
                await ask(client, "4?")
                assert clear_responses(store) == 1
                assert not list(store.scan_iter(match="dray:response*"))

    asyncio.run(work())


@pytest.mark.parametrize(
    ("settings", "fields", "status"),
    [
        ({}, {"store": False}, 404),
        ({"responses": {"store": False}}, {"store": True}, 400),
        ({"cache": {"enabled": False}}, {"store": True}, 400),
    ],
)
def test_storing_can_be_turned_off(
    server: OwnRedis,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    settings: dict[str, Any],
    fields: dict[str, Any],
    status: int,
) -> None:
    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path, **settings) as client:
            for stream in (False, True):
                response = await ask(client, "3+4?", stream=stream, **fields)
                assert response["store"] is False
                assert (await client.get(f"{PATH}/{response['id']}")).status_code == status
                refused = await client.post(PATH, json=body_of("And?", previous_response_id=response["id"]))
                assert (refused.status_code, refused.json()["error"]["param"]) == (400, "previous_response_id")
        with redis.Redis.from_url(server.url) as store:
            assert not list(store.scan_iter(match="dray:response*"))

    asyncio.run(work())


def test_a_generation_never_fails_for_redis(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path, cache={"timeout_s": 0.2}) as client:
            stored = await ask(client, "3+4?")
            server.stop()
            for stream in (False, True):
                assert (await ask(client, "And 5?", stream=stream))["store"] is False
            for answer in (
                await client.get(f"{PATH}/{stored['id']}"),
                await client.delete(f"{PATH}/{stored['id']}"),
                await client.post(PATH, json=body_of("And?", previous_response_id=stored["id"])),
            ):
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "responses_unavailable")
                assert answer.headers["retry-after"]

    asyncio.run(work())


def test_wrong_questions_about_stored_responses(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path) as client:
            ids = {(await ask(client, "3+4?"))["id"] for _ in range(3)}
            assert len(ids) == 3 and all(len(each) == len("resp_") + 48 for each in ids)
            path = f"{PATH}/{ids.pop()}"
            for query in ("limit=0", "limit=101", "limit=x", "limit=١", "order=up", "after=msg_x"):
                answer = await client.get(f"{path}/input_items?{query}")
                assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.partition("=")[0])
            assert (await client.get(f"{path}?stream=true")).status_code == 400
            for other in ("resp_x", "resp_" + "0" * 48, "*", "%2e%2e", "input_tokens"):
                assert (await client.get(f"{PATH}/{other}")).status_code == 404, other
                assert (await client.delete(f"{PATH}/{other}")).status_code == 404, other
            strange: list[object] = [5, "x" * 5000, {}, "resp_\u0000"]
            for wrong in strange:
                answer = await client.post(PATH, json=body_of("hi", previous_response_id=wrong))
                assert answer.status_code == 400 and len(answer.content) < 1000
            # The name of the field may be written in another way.
            escaped = json.dumps(body_of("hi", previous_response_id="resp_x")).replace("previous_", "previous\\u005f")
            headers = {"Content-Type": "application/json"}
            answer = await client.post(PATH, content=escaped, headers=headers)
            assert answer.json()["error"]["code"] == "previous_response_not_found"

    asyncio.run(work())
