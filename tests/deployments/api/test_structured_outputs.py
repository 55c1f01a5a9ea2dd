"""Structured outputs under vLLM's names: what engines get, which answers are shared, and what is refused."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from cluster.redis_server import OwnRedis
from deployments.common.messages import Sampling
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import Engines, running_router

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": [{"role": "user", "content": "3+4?"}]},
    COMPLETIONS: {"model": MODEL, "prompt": "3+4="},
}
SCHEMA = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
SCHEMA_TEXT = '{"type":"object","properties":{"sum":{"type":"integer"}},"required":["sum"]}'
GBNF = 'root ::= "7" | "eight"'
SAME: list[tuple[dict[str, Any], ...]] = [
    (
        {"guided_json": SCHEMA},
        {"guided_json": SCHEMA_TEXT},
        {"structured_outputs": {"json": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
    ),
    ({"structured_outputs": {"json_object": True}}, {"response_format": {"type": "json_object"}}),
    ({"guided_regex": r"\d+"}, {"structured_outputs": {"regex": r"\d+"}}),
    ({"guided_choice": ["7", "8"]}, {"structured_outputs": {"choice": ["7", "8"]}}),
    ({"guided_grammar": GBNF}, {"structured_outputs": {"grammar": GBNF}}),
]
NEUTRAL: dict[str, Any] = {
    "response_format": {"type": "text"},
    "guided_regex": None,
    "structured_outputs": {"json_object": False, "regex": None},
}


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


@asynccontextmanager
async def asking(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, engines: Engines
) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        running_router(monkeypatch, server.url, engines=engines) as router,
        httpx.AsyncClient(base_url=router.url, timeout=20) as client,
    ):
        yield client


@pytest.mark.parametrize("path", BODIES)
def test_all_names_constrain_the_same_and_share_answers(
    path: str, server: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Sampling] = []
    engines = Engines(on_request=lambda: seen.append(engines.request.sampling))

    async def work() -> None:
        async with asking(server, monkeypatch, engines) as client:
            free = await client.post(path, json=BODIES[path])
            keys = {free.headers["x-dray-cache-key"]}
            assert [sampling.grammar for sampling in seen] == [None]
            neutral = await client.post(path, json=BODIES[path] | NEUTRAL)
            assert neutral.headers["x-dray-cache"] == "hit"
            for ways in SAME:
                seen.clear()
                results = []
                for stream, fields in [(False, ways[0]), *((True, way) for way in ways)]:
                    answer = await client.post(path, json=BODIES[path] | fields | {"stream": stream})
                    assert answer.status_code == 200, (fields, answer.text)
                    assert "x-dray-ignored" not in answer.headers
                    results.append((answer.headers["x-dray-cache"], answer.headers["x-dray-cache-key"]))
                assert [result for result, _ in results] == ["miss", *["hit"] * len(ways)], ways
                assert len(keys | {key for _, key in results}) == len(keys) + 1
                keys.add(results[0][1])
                # The thinking is free, and generated apart; a text has none.
                *thinking, last = seen
                assert last.grammar is not None and last.grammar.text
                assert [sampling.grammar for sampling in thinking] == ([None] if path == CHAT else [])

    asyncio.run(work())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"guided_regex": "(?=a)b"}, "guided_regex"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
    ({"guided_grammar": "start: nothing"}, "guided_grammar"),
    ({"structured_outputs": {"grammar": 'start: %json {"type": "string"}'}}, "structured_outputs.grammar"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": ["a", ""]}, "guided_choice"),
    ({"guided_choice": [1, 2]}, "guided_choice[0]"),
    ({"guided_json": "no JSON"}, "guided_json"),
    ({"guided_json": "[1]"}, "guided_json"),
    ({"guided_json": {"type": "nothing"}}, "guided_json"),
    ({"structured_outputs": {"json": {"$ref": "#/$defs/a"}}}, "structured_outputs.json"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
]


@pytest.mark.parametrize("path", BODIES)
def test_what_cannot_be_held_names_its_field(path: str, server: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with asking(server, monkeypatch, Engines()) as client:
            for fields, param in REFUSED:
                for stream in (False, True):
                    answer = await client.post(path, json=BODIES[path] | fields | {"stream": stream})
                    assert answer.status_code == 400, (fields, answer.text)
                    assert answer.json()["error"]["param"] == param
            if path == COMPLETIONS:
                several = {"prompt": ["a", "b"], "guided_regex": "("}
                answer = await client.post(path, json=BODIES[path] | several)
                assert answer.json()["error"]["param"] == "guided_regex"

    asyncio.run(work())


def test_a_regular_expression_excludes_tools(server: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]

    async def work() -> None:
        async with asking(server, monkeypatch, Engines()) as client:
            body = BODIES[CHAT] | {"guided_choice": ["7", "8"], "tools": tools}
            refused = await client.post(CHAT, json=body)
            error = refused.json()["error"]
            assert (refused.status_code, error["param"]) == (400, "guided_choice") and "tools" in error["message"]
            assert (await client.post(CHAT, json=body | {"tool_choice": "none"})).status_code == 200

    asyncio.run(work())
