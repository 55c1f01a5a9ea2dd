"""Requests that anybody may send for nothing cost next to nothing."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from cluster.redis_server import OwnRedis
from deployments.api import info
from deployments.api.pacing import Paced
from tests.conftest import redis_server
from tests.deployments.routers import running_router


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


@pytest.mark.parametrize(("path", "maker"), [("/openapi.json", "document"), ("/docs", "page")])
def test_the_description_of_the_api_is_made_once(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, path: str, maker: str
) -> None:
    info.described.cache_clear()
    made, original = [], getattr(info, maker)

    def counted() -> Any:
        made.append(1)
        return original()

    monkeypatch.setattr(info, maker, counted)

    async def work() -> None:
        async with (
            running_router(monkeypatch, server.url) as router,
            httpx.AsyncClient(base_url=router.url, timeout=20) as client,
        ):
            responses = await asyncio.gather(*(client.get(path) for _ in range(20)))
            assert {response.status_code for response in responses} == {200}
            assert len({response.content for response in responses}) == 1 and len(responses[0].content) > 1000
            etag = responses[0].headers["etag"]
            for named in (etag, f'"other", W/{etag}', "*"):
                again = await client.get(path, headers={"If-None-Match": named})
                assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
            assert (await client.get(path, headers={"If-None-Match": '"other"'})).status_code == 200

    asyncio.run(work())
    assert len(made) == 1


def test_many_readiness_probes_ask_the_controller_once_a_second(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def missing(engines: dict[str, str]) -> list[str]:
        asked.append(1)
        return [] if len(asked) < 3 else ["dray-demo"]

    monkeypatch.setattr(info, "models_without_replicas", missing)

    async def work() -> None:
        async with (
            running_router(monkeypatch, server.url) as router,
            httpx.AsyncClient(base_url=router.url, timeout=20) as client,
        ):
            now = 0.0
            router.router._info._missing._clock = lambda: now
            responses = await asyncio.gather(*(client.get("/health/ready") for _ in range(20)))
            assert {response.status_code for response in responses} == {200}
            assert len(asked) == 1
            now = 1.5
            assert (await client.get("/health/ready")).status_code == 200
            assert len(asked) == 2
            now = 3.0
            assert (await client.get("/health/ready")).status_code == 503
            assert (await client.get("/health/ready")).status_code == 503
            assert len(asked) == 3

    asyncio.run(work())


def test_many_readers_of_the_metrics_get_one_report(server: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def report(*, vllm_names: bool) -> bytes:
        assert not vllm_names
        made.append(1)
        if len(made) == 1:
            raise OSError("a file went away")
        return b"dray_requests_total 1"

    monkeypatch.setattr(info, "exposition", report)

    async def work() -> None:
        async with (
            running_router(monkeypatch, server.url) as router,
            httpx.AsyncClient(base_url=router.url, timeout=20) as client,
        ):
            assert (await client.get("/metrics")).status_code == 500
            responses = await asyncio.gather(*(client.get("/metrics") for _ in range(20)))
            assert {response.text for response in responses} == {"dray_requests_total 1"}

    asyncio.run(work())
    assert len(made) == 2, "a failure is not kept"


def test_a_paced_value_is_made_after_it_was_asked_for_and_rarely() -> None:
    made = []

    async def make() -> int:
        made.append(asyncio.get_running_loop().time())
        return len(made)

    async def work() -> None:
        paced = Paced(make, interval_s=0.2)
        assert await asyncio.gather(*(paced.value() for _ in range(20))) == [1] * 20
        assert await asyncio.gather(*(paced.value() for _ in range(20))) == [2] * 20
        assert made[1] - made[0] >= 0.2

    asyncio.run(work())
