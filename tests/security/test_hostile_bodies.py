"""Bodies and headers made to break a parser get a short 400 in the API's own shape, never a 500."""

import asyncio
import json
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import pytest
import redis

from cluster.records.team_records import ADMIN
from cluster.records.teams import create_key
from cluster.redis_server import OwnRedis
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import running_router

USER = {"role": "user", "content": "hi"}
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {}}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [USER], "tools": [{"type": "function", "function": TOOL}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi", "tools": [{"type": "function", **TOOL}], "metadata": {}},
    "/v1/messages": {"messages": [USER], "max_tokens": 9, "tools": [{"name": "f", "input_schema": {}}]},
    "/v1/embeddings": {"input": "hi"},
    "/v1/rerank": {"query": "hi", "documents": ["hi", {"text": "hi"}]},
    "/v1/score": {"text_1": "hi", "text_2": ["hi"]},
    "/tokenize": {"prompt": "hi"},
    "/v1/responses/input_tokens": {"input": "hi", "tools": [{"type": "function", **TOOL}], "metadata": {}},
    "/v1/messages/count_tokens": {"messages": [USER], "tools": [{"name": "f", "input_schema": {}}]},
    "/detokenize": {"tokens": [40]},
    "/admin/teams": {"name": "a"},
    "/admin/keys": {"team": "a"},
}
GENERATING = list(BODIES)[:4]
DEEP = "[" * 30_000 + "]" * 30_000
VALUES = {
    "deep": DEEP,
    "deep and open": "[" * 60_000,
    "deep objects": '{"a":' * 9_000 + "1" + "}" * 9_000,
    "deep within the decoder's limit": "[" * 900 + "]" * 900,
    "long integer": "1" * 5000,
    "long negative integer": "-" + "1" * 5000,
    "long exponent": "1e" + "9" * 5000,
    "infinite": "1e400",
    "tiny": "1e-300",
    "nan": "NaN",
    "infinity": "-Infinity",
    "beyond 64 bits": str(2**64),
    "surrogate": '"\\ud800"',
    "long text": '"' + "a" * 50_000 + '"',
}


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(64) as own:
        yield own


def all_but_the_first_slow(paths: Iterable[str]) -> list[Any]:
    """The first path is tried by the suite, the others, which take a minute together, by the slow tests."""
    first, *others = paths
    return [first, *(pytest.param(path, marks=pytest.mark.slow) for path in others)]


def headers_for(server: OwnRedis, path: str) -> dict[str, str]:
    """The headers of a JSON body, and of an admin key where the path needs one."""
    json_body = {"Content-Type": "application/json"}
    if not path.startswith("/admin"):
        return json_body
    with redis.Redis.from_url(server.url) as store:
        return json_body | {"Authorization": f"Bearer {create_key(store, ADMIN).secret}"}


def bodies(path: str) -> Iterator[tuple[str, str]]:
    """Bodies with each value in place of each field's, in a place for any JSON, and as an unknown field."""
    plain = {"model": MODEL, **BODIES[path]} if not path.startswith("/admin") else BODIES[path]
    for name, value in VALUES.items():
        yield f"{name} as the body", value
        numbers = {"temperature": 1, "max_tokens": 1, "seed": 1, "n": 1, "top_p": 1, "expires_in_s": 1, "weight": 1}
        for field in {**plain, **numbers, "unknown": 1}:
            members = [f'"{key}":{json.dumps(old)}' for key, old in plain.items() if key != field]
            yield f"{name} as {field}", "{" + ",".join([*members, f'"{field}":{value}']) + "}"
        text = json.dumps(plain)
        for place in ('"properties": {}', '"input_schema": {}', '"metadata": {}'):
            if place in text:
                yield f"{name} in {place}", text.replace(place, place[:-1] + '"x":' + value + "}")
    if path == "/v1/completions":
        for ids in ([-1], [2**63], [[-1], [40]], [True]):
            yield f"{ids} as token ids", json.dumps({**plain, "prompt": ids, "echo": True})
    unknown = ",".join(f'"{"x" * 50}{number}":1' for number in range(1000))
    yield "many unknown fields", json.dumps(plain)[:-1] + "," + unknown + "}"
    yield "a long unknown field", json.dumps(plain)[:-1] + ',"' + "y" * 60_000 + '":1}'
    yield "an unknown field with line breaks", json.dumps(plain)[:-1] + ',"' + " - at `$.\\n" * 5000 + '":1}'


def check(where: str, path: str, response: httpx.Response) -> None:
    assert response.status_code in (200, 201, 400, 404, 503), (where, response.status_code, response.text[:300])
    if response.status_code != 200 and response.status_code != 201:
        error = response.json()["error"]
        assert error["message"] and error["type"], where
        assert len(response.content) < 3000, (where, len(response.content))


@pytest.mark.parametrize("path", all_but_the_first_slow(BODIES))
def test_no_body_makes_a_server_error(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    headers = headers_for(server, path)

    async def work() -> None:
        async with (
            running_router(monkeypatch, server.url, teams_url=server.url) as router,
            httpx.AsyncClient(base_url=router.url, headers=headers, timeout=30) as client,
        ):
            for where, body in bodies(path):
                check(where, path, await client.post(path, content=body))

    asyncio.run(asyncio.wait_for(work(), 200))


@pytest.mark.parametrize("path", all_but_the_first_slow(GENERATING))
def test_no_header_makes_a_server_error(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    seconds = ("nan", "inf", "-inf", "-1", "0", "1e400", "1e-300", "9" * 5000, "٣", "x" * 5000, "")
    headers = [(name, value) for name in ("x-request-timeout-seconds", "X-Dray-Cache-TTL") for value in seconds]
    headers += [("Cache-Control", f"max-age={value}") for value in seconds if value != "0"]
    headers += [("Idempotency-Key", "k" * 5000), ("content-type", "x/" + "y" * 5000)]

    async def work() -> None:
        async with (
            running_router(monkeypatch, server.url) as router,
            httpx.AsyncClient(base_url=router.url, timeout=30) as client,
        ):
            body = {"model": MODEL, **BODIES[path]}
            for name, value in headers:
                response = await client.post(path, json=body, headers=[(name.encode(), value.encode())])
                assert response.status_code in (400, 415), (name, value[:20], response.status_code, response.text[:200])
                assert response.json()["error"]["message"]
                assert len(response.content) < 1000
            # As short as a timeout may be: it is over before the answer is there, unless that comes at once.
            response = await client.post(path, json=body, headers={"x-request-timeout-seconds": "0.001"})
            assert response.status_code in (200, 408), response.text
            response = await client.get("/" + "z" * 20_000)
            assert response.status_code == 404 and len(response.content) < 1000
            assert (await client.post(path, json=body)).status_code == 200

    asyncio.run(asyncio.wait_for(work(), 100))
