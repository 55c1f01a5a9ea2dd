"""Two Ray clusters with one Redis for their teams, and no bucket: each reaches only the files of its own machine."""

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from cluster.ports import free_port
from cluster.records.batches import batch_key
from cluster.redis_server import Listen, OwnRedis
from deployments import router
from deployments.routing import heartbeat
from tests.deployments.batches.batch_files import batch_router, ended, jsonl, line, submit
from tests.deployments.waiting import until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnRedis]:
    """One that others reach too."""
    own = OwnRedis(tmp_path / "r", 32, listen=Listen("127.0.0.1", free_port(), secrets.token_hex(8)))
    own.start()
    yield own
    own.stop()


def test_a_batch_waits_for_the_zone_that_has_its_file(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(heartbeat, "_INTERVAL_S", heartbeat.MIN_INTERVAL_S)

    async def work() -> None:
        async with AsyncExitStack() as stack:
            monkeypatch.setattr(router, "cluster_id", lambda: "a")
            first, client = await stack.enter_async_context(batch_router(server, monkeypatch, tmp_path / "a"))
            first.router._batches._runner._closed = True  # as if it had no room
            batch = await submit(client, jsonl(*(line(f"z{number}") for number in range(40))))

            monkeypatch.setattr(router, "cluster_id", lambda: "b")
            second, other = await stack.enter_async_context(batch_router(server, monkeypatch, tmp_path / "b"))
            store, looked = second.router._batches._runner._store, list[Any]()
            listed = store.open

            def look() -> Any:
                looked.append(listed())
                return looked[-1]

            store.open = look
            await until(lambda: second.router._batches._files.has_neighbours)
            await until(lambda: len(looked) >= 2)
            assert (await other.batches.retrieve(batch.id)).status == "validating"
            with pytest.raises(openai.BadRequestError) as refused:
                await other.files.create(file=("in.jsonl", jsonl(line("q"))), purpose="batch")
            assert refused.value.code == "files_not_kept"

            first.router._batches._runner._closed = False
            batch = await ended(other, batch)
            assert batch.status == "completed" and batch.request_counts is not None
            assert batch.request_counts.completed == 40

    asyncio.run(work())


def test_a_batch_whose_zone_stays_away_ends_when_its_time_is_over(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(heartbeat, "_INTERVAL_S", heartbeat.MIN_INTERVAL_S)

    async def work() -> None:
        monkeypatch.setattr(router, "cluster_id", lambda: "a")
        async with batch_router(server, monkeypatch, tmp_path / "a") as (first, client):
            first.router._batches._runner._closed = True
            batch = await submit(client, jsonl(line("z")))
            monkeypatch.setattr(router, "cluster_id", lambda: "b")
            async with batch_router(server, monkeypatch, tmp_path / "b") as (second, other):
                await until(lambda: second.router._batches._files.has_neighbours)
                assert not await second.router._batches._runner._take()
                key = batch_key("batch", batch.id)
                await second.router._teams.execute("HSET", key, "created_at", 1000, "expires_at", 2000)
                assert (await ended(other, batch)).status == "expired"

    asyncio.run(work())
