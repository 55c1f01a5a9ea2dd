"""Whoever dies, each line is answered once in the output; with several real routers and a real Redis."""

import asyncio
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cluster.objects.folder import FolderStore
from cluster.records.team_records import Quota, Team
from cluster.records.teams import add_team, change_team, create_key, remove_team
from cluster.redis_client import connect
from cluster.redis_server import OwnRedis
from deployments.batches import asking, service
from deployments.common.messages import decode_request
from tests.conftest import redis_server
from tests.deployments.batches.batch_files import CHAT, batch_router, ended, jsonl, line, lines_of, submit
from tests.deployments.routers import Engines, Response
from tests.deployments.waiting import until


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(32) as own:
        yield own


def asked(count: int) -> bytes:
    return jsonl(*(line(f"d{number}") for number in range(count)))


async def check(client: Any, batch: Any, count: int) -> None:
    """Each line has one answer."""
    batch = await ended(client, batch)
    assert batch.status == "completed", batch
    answers = await lines_of(client, batch.output_file_id)
    assert [answer["custom_id"] for answer in answers] == [f"d{number}" for number in range(count)]
    assert batch.request_counts.completed == count


async def die(router: Any) -> None:
    """Ends all that the router does for batches, without a word to anybody, as a killed process does."""
    runner = router.router._batches._runner
    runner._closed = True

    async def no_word(task: object) -> None:
        pass

    runner._leave = no_word
    for task in tuple(runner._tasks):
        task.cancel()
    await asyncio.gather(*runner._tasks, return_exceptions=True)


def test_another_router_goes_on_where_one_dies(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(service, "LEASE_S", 2.0)

    async def work() -> None:
        engines = Engines(blocked=asyncio.Event())
        async with AsyncExitStack() as stack:
            first, client = await stack.enter_async_context(
                batch_router(server, monkeypatch, tmp_path, engines=engines, batches={"lines_at_a_time": 500})
            )
            batch = await submit(client, asked(200))
            runner = first.router._batches._runner
            await until(lambda: len(runner._tasks) == 7 and engines.requests)
            await die(first)
            assert engines.blocked is not None
            engines.blocked.set()
            _, other = await stack.enter_async_context(batch_router(server, monkeypatch, tmp_path))
            await check(other, batch, 200)

    asyncio.run(work())


def test_a_router_that_has_lost_its_lease_adds_nothing(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It was cut off from Redis, or stopped, and comes back with answers that another has given by then."""
    monkeypatch.setattr(service, "LEASE_S", 2.0)

    async def work() -> None:
        async with AsyncExitStack() as stack:
            slow, quick = Engines(blocked=asyncio.Event()), Engines()
            first, client = await stack.enter_async_context(batch_router(server, monkeypatch, tmp_path, engines=slow))
            batch = await submit(client, asked(5))
            await until(lambda: slow.requests == 5)

            async def cut_off(task: object) -> str:
                return ""

            first.router._batches.store.renew = cut_off
            first.router._batches._runner._closed = True
            _, other = await stack.enter_async_context(
                batch_router(server, monkeypatch, tmp_path, engines=quick, cache={"enabled": False})
            )
            await check(other, batch, 5)
            assert slow.blocked is not None
            slow.blocked.set()
            await until(lambda: not first.router._batches._runner._tasks)
            assert quick.requests == 5
            await check(client, batch, 5)
            assert sorted(path.name[:6] for path in (tmp_path / "batches" / "parts").iterdir()) == []

    asyncio.run(work())


def test_a_router_that_ends_leaves_its_lines_at_once(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        engines = Engines(blocked=asyncio.Event())
        monkeypatch.setattr(service, "LEASE_S", 3600.0)
        async with batch_router(server, monkeypatch, tmp_path, engines=engines) as (_, client):
            batch = await submit(client, asked(40))
            await until(lambda: engines.requests)
        async with batch_router(server, monkeypatch, tmp_path) as (_, client):
            await check(client, batch, 40)

    asyncio.run(work())


def test_redis_may_die_and_come_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With its data on the disk, as the teams' own Redis has it."""

    async def work() -> None:
        engines = Engines(blocked=asyncio.Event())
        with tempfile.TemporaryDirectory(prefix="dray-r-") as folder:
            teams = OwnRedis(Path(folder) / "s", 32, data_dir=tmp_path / "data")
            teams.start()
            try:
                async with batch_router(teams, monkeypatch, tmp_path, engines=engines) as (_, client):
                    batch = await submit(client, asked(100))
                    await until(lambda: engines.requests)
                    assert teams.pid is not None and engines.blocked is not None
                    os.kill(teams.pid, signal.SIGKILL)
                    engines.blocked.set()
                    await until(teams.revive)
                    await check(client.with_options(max_retries=8), batch, 100)
            finally:
                teams.stop()

    asyncio.run(work())


def test_answers_wait_for_a_full_disk_and_are_not_asked_again(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(service, "LEASE_S", 2.0)
    write, left = FolderStore.write, [5]

    def full(store: FolderStore, name: str, content: Iterable[bytes]) -> int:
        if name.startswith("parts/") and left[0]:
            left[0] -= 1
            raise OSError(28, "No space left on device")
        return write(store, name, content)

    monkeypatch.setattr(FolderStore, "write", full)

    async def work() -> None:
        engines = Engines()
        async with batch_router(server, monkeypatch, tmp_path, engines=engines) as (_, client):
            await check(client, await submit(client, asked(10)), 10)
            assert engines.requests == 10 and not left[0]

    asyncio.run(work())


@dataclass
class FailingEngines(Engines):
    """Fail on one prompt, whoever asks."""

    asked: Counter[int] = field(default_factory=Counter)

    def remote(self, payload: bytes) -> Response:
        self.asked[len(decode_request(payload).prompt_ids)] += 1
        self.error = RuntimeError("broken") if len(decode_request(payload).prompt_ids) > 200 else None
        return super().remote(payload)


def test_a_line_on_which_the_server_fails_is_an_error_line(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(asking, "_MAX_PAUSE_S", 0.1)

    async def work() -> None:
        async with batch_router(server, monkeypatch, tmp_path, engines=FailingEngines()) as (_, client):
            long = line("long", messages=[{"role": "user", "content": "word " * 300}])
            batch = await ended(client, await submit(client, jsonl(long, line("short"))))
            assert batch.status == "completed"
            [error] = await lines_of(client, batch.error_file_id)
            assert error["custom_id"] == "long" and error["response"]["status_code"] == 500
            assert len(await lines_of(client, batch.output_file_id)) == 1

    asyncio.run(work())


def test_a_minutes_quota_makes_a_batch_wait_and_the_month_ends_it(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Limits of requests are for those who wait: a batch takes none of them."""
    monkeypatch.setattr(asking, "_MAX_PAUSE_S", 0.2)
    limits = Quota(tokens_per_minute=1, requests_per_minute=2, requests_at_a_time=1)
    with connect(server.url) as store:
        for name, quota in (("slow", limits), ("poor", Quota(tokens_per_month=1))):
            add_team(store, Team(name, 0.0, quota=quota))
        keys = {name: create_key(store, name).secret for name in ("slow", "poor")}

    async def work() -> None:
        async with batch_router(server, monkeypatch, tmp_path) as (router, client):
            slow = client.with_options(api_key=keys["slow"])
            batch = await submit(slow, asked(20))
            await until(lambda: router.counted().get((CHAT, "429"), 0) > 20)
            with connect(server.url) as store:
                change_team(store, "slow", quota=replace(limits, tokens_per_minute=0))
            await check(slow, batch, 20)
            await slow.chat.completions.create(**line("a person")["body"])
            poor = client.with_options(api_key=keys["poor"])
            batch = await ended(poor, await submit(poor, asked(3)))
            errors = await lines_of(poor, batch.error_file_id)
            codes = [each["response"]["body"]["error"]["code"] for each in errors]
            assert batch.status == "completed" and "insufficient_quota" in codes

    asyncio.run(work())


def test_the_lines_of_a_team_that_was_removed_are_errors(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        with connect(server.url) as store:
            add_team(store, Team("gone", 0.0))
            key = create_key(store, "gone").secret
        async with batch_router(server, monkeypatch, tmp_path) as (router, client):
            router.router._batches._runner._closed = True
            client = client.with_options(api_key=key)
            batch = await submit(client, asked(2))
            with connect(server.url) as store:
                remove_team(store, "gone")
            await until(lambda: not router.router._authenticator._registry.teams)
            runner = router.router._batches._runner
            runner._closed = False
            await until(lambda: not runner._tasks and not runner._left)
            async with asyncio.timeout(30):
                while (state := await router.router._batches.store.get(batch.id)).status != "completed":
                    await asyncio.sleep(0.05)
            assert (state.failed, state.completed) == (2, 0)

    asyncio.run(work())
