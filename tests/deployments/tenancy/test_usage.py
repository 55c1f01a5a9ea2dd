"""Usage reaches a real Redis exactly once, even if a flush is cut short."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterator

import pytest

from cluster.redis_server import OwnRedis
from deployments.common.redis import RedisCallbacks, RedisStore
from deployments.common.types import Usage
from deployments.tenancy.usage import UsageRecorder
from tests.conftest import redis_server


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


def run(work: Callable[[], Coroutine[None, None, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await work()

    asyncio.run(bounded())


def store_at(url: str, timeout_s: float) -> RedisStore:
    return RedisStore("teams", url, timeout_s, RedisCallbacks(lambda: None, lambda is_open: None))


def pause(server: OwnRedis) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)


def resume(server: OwnRedis) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGCONT)


def count(usage: UsageRecorder, requests: int) -> None:
    for _ in range(requests):
        usage.record("support", "m", Usage(10, 3, 0, 4), generated=True)


async def assert_counted(server: OwnRedis, requests: int) -> None:
    store = store_at(server.url, 5)
    [row] = await UsageRecorder(store).read(1, "support")
    assert (row.requests, row.prompt, row.completion, row.cached) == tuple(requests * n for n in (1, 10, 3, 4))
    await store.close()


def test_closing_writes_the_usage_since_the_last_flush(server: OwnRedis) -> None:
    async def work() -> None:
        store = store_at(server.url, 5)
        usage = UsageRecorder(store)
        count(usage, 2)
        await usage.flush()
        count(usage, 3)
        await usage.close()
        await store.close()
        await assert_counted(server, 5)

    run(work)


def test_a_flush_cancelled_midway_is_neither_lost_nor_counted_twice(server: OwnRedis) -> None:
    async def work() -> None:
        store = store_at(server.url, 5)
        usage = UsageRecorder(store)
        count(usage, 1)
        await usage.flush()  # the connection is open and the script loaded
        count(usage, 2)
        pause(server)
        periodic = asyncio.create_task(usage.flush())
        await asyncio.sleep(0.1)  # long enough to send the command, which the paused server reads when it continues
        periodic.cancel()
        await asyncio.wait({periodic})
        assert periodic.cancelled()
        count(usage, 4)
        resume(server)
        await usage.close()
        await store.close()
        await assert_counted(server, 7)

    run(work)


def test_a_flush_that_timed_out_and_was_applied_is_not_counted_twice(server: OwnRedis) -> None:
    async def work() -> None:
        store = store_at(server.url, 0.2)
        usage = UsageRecorder(store)
        count(usage, 1)
        await usage.flush()
        count(usage, 2)
        pause(server)
        await usage.flush()  # times out; the paused server reads the command when it continues
        count(usage, 4)
        closing = asyncio.create_task(usage.close())
        await asyncio.sleep(0.5)
        resume(server)
        await closing
        await store.close()
        await assert_counted(server, 7)

    run(work)


def test_closing_takes_limited_time_and_logs_lost_usage(server: OwnRedis, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        store = store_at(server.url, 0.1)
        usage = UsageRecorder(store)
        count(usage, 1)
        pause(server)
        try:
            async with asyncio.timeout(10):
                await usage.close(timeout_s=0.5)
        finally:
            resume(server)
        await store.close()

    run(work)
    assert "usage since the last flush is lost" in caplog.text
