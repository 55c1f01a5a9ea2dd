"""How many tokens a prompt has: counted beforehand, at the start of a stream, and in the answer."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.redis_server import OwnRedis
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import Engines, running_router

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
TOOL = {"name": "weather", "description": "The weather", "input_schema": {"type": "object", "properties": {}}}
USE = {"type": "tool_use", "id": "t", "name": "weather", "input": {"city": "北京"}}
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [{"role": "user", "content": "3+4?"}]},
    "system": {"messages": [{"role": "user", "content": "3+4?"}], "system": [{"type": "text", "text": "Be brief."}]},
    "no thinking": {"messages": [{"role": "user", "content": "3+4?"}], "thinking": {"type": "disabled"}},
    "tools": {
        "messages": [
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, USE]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "sunny"}]},
        ],
        "tools": [TOOL],
        "tool_choice": {"type": "auto"},
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


@asynccontextmanager
async def asking(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, folder: Path, engines: Engines | None = None, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        running_router(monkeypatch, server.url, engines=engines, data_dir=folder, **settings) as router,
        httpx.AsyncClient(base_url=router.url, timeout=30) as client,
    ):
        yield client


def started(stream: str) -> dict[str, Any]:
    """The usage in a stream's message_start."""
    [start] = [line for line in stream.splitlines() if line.startswith("data: ") and "message_start" in line]
    usage: dict[str, Any] = json.loads(start.removeprefix("data: "))["message"]["usage"]
    return usage


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_message_is_counted_as_it_is_charged(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, conversation: dict[str, Any]
) -> None:
    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path) as client:
            body = {"model": MODEL, "temperature": 0, **conversation}
            counted = await client.post(COUNT, json=body)
            assert counted.status_code == 200, counted.text
            answer = await client.post(MESSAGES, json=body | {"max_tokens": 50})
            tokens = answer.json()["usage"]["input_tokens"]
            assert counted.json() == {"input_tokens": tokens} and tokens > 5
            for headers in ({}, {"Cache-Control": "no-cache, no-store"}):
                stream = await client.post(MESSAGES, json=body | {"max_tokens": 50, "stream": True}, headers=headers)
                assert stream.headers["x-dray-cache"] == ("bypass" if headers else "hit")
                assert started(stream.text)["input_tokens"] == tokens

    asyncio.run(work())


def test_a_responses_input_is_counted_as_it_is_charged(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path) as client:
            tool = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
            for more in ({}, {"instructions": "Be brief."}, {"tools": [tool, {"type": "web_search"}]}):
                body = {"model": MODEL, "input": "3+4?", "temperature": 0, **more}
                counted = await client.post("/v1/responses/input_tokens", json=body)
                answer = await client.post("/v1/responses", json=body)
                tokens = answer.json()["usage"]["input_tokens"]
                assert counted.json() == {"object": "response.input_tokens", "input_tokens": tokens}
                assert counted.headers.get("x-dray-ignored") == answer.headers.get("x-dray-ignored")

    asyncio.run(work())


def test_who_joins_a_generation_is_told_the_prompts_tokens_too(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        engines = Engines(blocked=asyncio.Event())
        async with asking(server, monkeypatch, tmp_path, engines) as client:
            body = {"model": MODEL, "max_tokens": 50, "temperature": 0, "stream": True}
            body["messages"] = [{"role": "user", "content": "a question that two have"}]
            first = asyncio.create_task(client.post(MESSAGES, json=body))
            async with asyncio.timeout(20):
                while not engines.requests:
                    await asyncio.sleep(0.01)
            async with client.stream("POST", MESSAGES, json=body) as joined:
                assert joined.headers["x-dray-cache"] == "join"
                assert engines.blocked is not None
                engines.blocked.set()
                text = (await joined.aread()).decode()
            counted = (await client.post(COUNT, json={"model": MODEL, "messages": body["messages"]})).json()
            assert started(text)["input_tokens"] == started((await first).text)["input_tokens"]
            assert started(text)["input_tokens"] == counted["input_tokens"]

    asyncio.run(work())


def test_a_prompt_that_is_too_long_is_named_with_its_length(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Agents look for these words and numbers, and then shorten their conversation."""

    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path) as client:
            for text in ("1 " * 3000, "1 " * 300_000):
                body = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": text}]}
                for stream in (False, True):
                    refused = await client.post(MESSAGES, json=body | {"stream": stream})
                    error = refused.json()["error"]
                    assert (refused.status_code, error["type"]) == (400, "invalid_request_error")
                    found = re.match(r"prompt is too long: (\d+) tokens > (\d+) maximum", error["message"])
                    assert found is not None and int(found[1]) > int(found[2]) == 2047
            counted = await client.post(COUNT, json=body | {"messages": [{"role": "user", "content": "1 " * 3000}]})
            assert counted.json()["input_tokens"] > 2047, "what is too long can be counted"

    asyncio.run(work())


def test_counting_refuses_and_ignores_as_answering_does(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        body = {"model": MODEL, **CONVERSATIONS["plain"]}
        async with asking(server, monkeypatch, tmp_path) as client:
            counted = await client.post(COUNT, json=body | {"num_ctx": 1})
            assert (counted.status_code, counted.headers["x-dray-ignored"]) == (200, "num_ctx")
            for wrong, kind in (({"model": "no"}, "not_found_error"), ({"messages": []}, "invalid_request_error")):
                refused = (await client.post(COUNT, json=body | wrong)).json()
                assert (refused["type"], refused["error"]["type"]) == ("error", kind)
            assert (await client.post(MESSAGES, json=body)).status_code == 400, "max_tokens is required there"
        async with asking(server, monkeypatch, tmp_path, api={"unknown_fields": "refuse"}) as client:
            assert (await client.post(COUNT, json=body | {"num_ctx": 1})).status_code == 400

    asyncio.run(work())
