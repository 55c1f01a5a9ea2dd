"""A router's start, its background work and its end."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis

from cluster.records.team_records import Team
from cluster.records.teams import add_team, create_key, end_key
from cluster.redis_server import OwnRedis
from cluster.serve_config import RouterArgs
from cluster.settings import Settings
from deployments import router
from deployments.tenancy.auth import Authenticator
from deployments.tenancy.usage import UsageRecorder
from tests.conftest import MODEL, redis_server
from tests.deployments.cache.test_answers import store_at
from tests.deployments.routers import RunningRouter, chat, running_router, start_router


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


class Reached(Exception):
    """Raised when the router opens its first Redis; the message has the URL."""


@pytest.mark.parametrize(
    ("argument", "expected"), [("", "rediss://:x@environment:1"), ("redis://argument:1", "redis://argument:1")]
)
def test_a_url_that_is_not_in_the_arguments_comes_from_the_environment(
    argument: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store(name: str, url: str, *more: Any) -> None:
        raise Reached(f"{name} {url}")

    monkeypatch.setattr(router, "RedisStore", store)
    monkeypatch.setenv("DRAY_TEAMS__URL", "rediss://:x@environment:1")
    args = RouterArgs(settings=Settings(), redis_url="", teams_url=argument, engines={})
    with pytest.raises(Reached, match=f"teams {expected}"):
        asyncio.run(start_router(args))


async def ask(running: RunningRouter, key: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=running.url, timeout=20) as client:
        headers = {"Authorization": f"Bearer {key}"}
        return await client.post("/v1/chat/completions", content=chat("hi"), headers=headers)


def test_the_last_usage_is_written_when_a_router_ends(server: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.tenancy.usage._FLUSH_S", 60)

    async def work() -> None:
        with redis.Redis.from_url(server.url) as store:
            add_team(store, Team("support", 0.0))
            key = create_key(store, "support").secret
        async with running_router(monkeypatch, server.url) as running:
            usage = (await ask(running, key)).json()["usage"]
        store_after = store_at(server.url)
        [row] = await UsageRecorder(store_after).read(1, "support")
        await store_after.close()
        assert (row.requests, row.model, row.prompt) == (1, MODEL, usage["prompt_tokens"])

    asyncio.run(work())


def test_keys_are_still_revoked_after_an_unexpected_failure(server: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    refresh, failures = Authenticator.refresh, list[int]()

    async def failing(authenticator: Authenticator) -> None:
        if not failures and authenticator._registry is not None:
            failures.append(1)
            raise TypeError("unexpected")
        await refresh(authenticator)

    monkeypatch.setattr(Authenticator, "refresh", failing)

    async def work() -> None:
        with redis.Redis.from_url(server.url) as store:
            add_team(store, Team("support", 0.0))
            created = create_key(store, "support")
            async with running_router(monkeypatch, server.url) as running:
                assert (await ask(running, created.secret)).status_code == 200
                async with asyncio.timeout(60):
                    while not failures:
                        await asyncio.sleep(0.02)
                    end_key(store, created.key.id)
                    while (await ask(running, created.secret)).status_code != 401:
                        await asyncio.sleep(0.05)

    asyncio.run(work())
