"""Charges for requests that fail, with a real router and its quotas in a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from cluster.records.team_records import Quota, Team
from cluster.records.teams import add_team, create_key
from cluster.redis_server import OwnRedis
from deployments.tenancy.quota_counters import current_month, quota_keys
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import Engines, RunningRouter, running_router
from tests.service.test_embeddings import make_model

CHAT = ("/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50})
STREAM = (CHAT[0], {**CHAT[1], "stream": True})
PROMPTS = ("/v1/completions", {"model": MODEL, "prompt": ["one", "two"], "max_tokens": 50})
EMBEDDINGS = ("/v1/embeddings", {"model": "vectors", "input": ["a few words"]})


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


@dataclass(frozen=True)
class Bounded:
    """A router, and the client of a team with limits."""

    router: RunningRouter
    client: httpx.AsyncClient
    store: redis.Redis

    def charged(self) -> tuple[int, int]:
        """The tokens that count for the team now: in this minute, and in this month."""
        keys = quota_keys("support", current_month())
        minute = sum(int(count) for count in self.store.hgetall(keys[1]).values())
        return minute, int(self.store.get(keys[3]) or 0)

    async def ends_with(self, tokens: int) -> None:
        """Waits until this number of tokens is charged: a background task settles the charge."""
        async with asyncio.timeout(60):
            while self.charged() != (tokens, tokens):
                await asyncio.sleep(0.02)


@asynccontextmanager
async def bounded(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, folder: Path, engines: Engines, **settings: Any
) -> AsyncIterator[Bounded]:
    make_model(folder / "tiny")
    models = [{"name": MODEL}, {"name": "vectors", "task": "embed", "source": str(folder / "tiny")}]
    with redis.Redis.from_url(server.url) as store:
        add_team(store, Team("support", 0.0, quota=Quota(tokens_per_minute=10_000, tokens_per_month=100_000)))
        key = create_key(store, "support").secret
        async with (
            running_router(monkeypatch, server.url, engines=engines, models=models, **settings) as router,
            httpx.AsyncClient(base_url=router.url, headers={"Authorization": f"Bearer {key}"}, timeout=20) as client,
        ):
            yield Bounded(router, client, store)


FULL, BUG = BackPressureError(num_queued_requests=1, max_queued_requests=1), RuntimeError("bug")


@pytest.mark.parametrize(
    ("request_", "error", "status"),
    [
        *(
            (request, error, status)
            for request in (CHAT, STREAM, PROMPTS)
            for error, status in ((FULL, 503), (BUG, 500))
        ),
        (EMBEDDINGS, FULL, 503),
        (EMBEDDINGS, BUG, 500),
        (EMBEDDINGS, ActorDiedError(), 500),
    ],
)
def test_a_request_that_fails_before_its_first_token_costs_nothing(
    server: OwnRedis,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    request_: tuple[str, dict[str, object]],
    error: Exception,
    status: int,
) -> None:
    async def work() -> None:
        async with bounded(server, monkeypatch, tmp_path, Engines(error=error)) as team:
            path, body = request_
            response = await team.client.post(path, json=body)
            assert response.status_code == status, response.text
            assert team.router.engines.requests, "the engines refused it, not the router"
            await team.ends_with(0)

    asyncio.run(work())


@pytest.mark.parametrize("request_", [CHAT, PROMPTS, EMBEDDINGS], ids=["chat", "prompts", "embed"])
def test_a_request_that_times_out_before_its_first_token_costs_nothing(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request_: tuple[str, dict[str, object]]
) -> None:
    async def work() -> None:
        engines = Engines(blocked=asyncio.Event())
        limits = {"request_timeout_s": 1}
        async with bounded(server, monkeypatch, tmp_path, engines, limits=limits) as team:
            path, body = request_
            request = asyncio.create_task(team.client.post(path, json=body))
            async with asyncio.timeout(60):
                while not engines.requests:
                    await asyncio.sleep(0.02)
            assert min(team.charged()) > 0, "the tokens are reserved while the request runs"
            assert (await request).status_code == 408
            await team.ends_with(0)

    asyncio.run(work())


def test_generated_and_embedded_tokens_are_charged(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with bounded(server, monkeypatch, tmp_path, Engines()) as team:
            total = 0
            for path, body in (CHAT, PROMPTS, EMBEDDINGS):
                usage = (await team.client.post(path, json=body)).json()["usage"]
                assert usage["total_tokens"] > 0
                total += usage["total_tokens"]
                await team.ends_with(total)

    asyncio.run(work())
