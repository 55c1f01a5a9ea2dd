"""Routers of two Ray clusters, as in two zones: with both Redis in common, or only that of the teams."""

import asyncio
import secrets
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from cluster.ports import free_port
from cluster.redis_server import Listen, OwnRedis
from deployments import router
from deployments.routing import heartbeat
from tests.conftest import redis_server
from tests.deployments.routers import Engines, RunningRouter, chat, running_router
from tests.deployments.waiting import until

HEADERS = {"Idempotency-Key": "0123456789", "Content-Type": "application/json"}


async def ask(monkeypatch: pytest.MonkeyPatch, answers_url: str, teams_url: str) -> tuple[str, int]:
    """How a zone's router answers, and how many requests its engines get."""
    engines = Engines()
    async with (
        running_router(monkeypatch, answers_url, teams_url, engines) as running,
        httpx.AsyncClient(base_url=running.url, timeout=30) as client,
    ):
        content = chat("What is 2 + 3?", temperature=1.5)
        answer = await client.post("/v1/chat/completions", content=content, headers=HEADERS)
    assert answer.status_code == 200
    return answer.headers["x-dray-cache"], engines.requests


def test_a_retry_is_answered_anew_where_zones_share_only_their_teams(monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_server(16) as teams, redis_server(16) as first, redis_server(16) as second:

        async def work() -> None:
            assert await ask(monkeypatch, first.url, teams.url) == ("miss", 1)
            assert await ask(monkeypatch, second.url, teams.url) == ("miss", 1)
            assert await ask(monkeypatch, first.url, teams.url) == ("hit", 0)

        asyncio.run(work())


def places(running: RunningRouter) -> list[int]:
    """How many requests may run at a time, for each model."""
    return [share._queue.part.slots for share in running.router._shares._shares.values()]


def test_a_zones_engines_are_all_its_own_and_quotas_are_of_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(heartbeat, "_INTERVAL_S", heartbeat.MIN_INTERVAL_S)
    own = OwnRedis(tmp_path / "r", 16, listen=Listen("127.0.0.1", free_port(), secrets.token_hex(8)))

    async def work() -> None:
        zones: list[RunningRouter] = []
        async with AsyncExitStack() as stack:
            for name in ("a", "b"):
                monkeypatch.setattr(router, "cluster_id", lambda name=name: name)
                zones.append(await stack.enter_async_context(running_router(monkeypatch, own.url)))
                if len(zones) == 1:
                    alone = places(zones[0])
            await until(lambda: all(zone.router._quotas.routers == 2 for zone in zones))
            assert [places(zone) for zone in zones] == [alone, alone]
            monkeypatch.setattr(router, "cluster_id", lambda: "a")
            zones.append(await stack.enter_async_context(running_router(monkeypatch, own.url)))
            await until(lambda: all(zone.router._quotas.routers == 3 for zone in zones))
            await until(lambda: places(zones[0]) < alone)
            assert places(zones[1]) == alone

    own.start()
    try:
        asyncio.run(work())
    finally:
        own.stop()
