"""A router's calls to a failing Redis: bounded in time, behind a circuit breaker, and logged once."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from cluster.redis_server import OwnRedis
from deployments.common.redis import _MAX_CALLS, RedisCallbacks, RedisStore, RedisUnavailable
from tests.conftest import records_of, redis_server


class Faults:
    """Counts the calls of a store's callbacks."""

    def __init__(self) -> None:
        self.number = 0
        self.open: list[bool] = []

    def count(self) -> None:
        self.number += 1


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(4) as own:
        yield own


def run(url: str, work: Callable[[RedisStore, Faults], Coroutine[Any, Any, None]], timeout_s: float = 1) -> None:
    async def bounded() -> None:
        faults = Faults()
        store = RedisStore("answers", url, timeout_s, RedisCallbacks(faults.count, faults.open.append))
        async with asyncio.timeout(60):
            await work(store, faults)
        await store.close()

    asyncio.run(bounded())


async def fails(store: RedisStore) -> float:
    started = time.monotonic()
    with pytest.raises(RedisUnavailable):
        await store.get("x")
    return time.monotonic() - started


def test_a_paused_server_opens_the_circuit_which_closes_by_itself(
    server: OwnRedis, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(store: RedisStore, faults: Faults) -> None:
        assert await store.get("x") is None
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            assert all([0.2 < await fails(store) < 5 for _ in range(3)])
            assert store.circuit_open and faults.open == [True]
            for _ in range(20):
                await fails(store)
            assert faults.number == 3, "an open circuit makes no calls"
        finally:
            os.kill(server.pid, signal.SIGCONT)
        while store.circuit_open:
            await asyncio.sleep(0.05)
        assert await store.get("x") is None
        assert faults.open == [True, False] and faults.number == 3
        assert [record.levelno for record in records_of(caplog, "dray.store")] == [logging.WARNING] * 2

    run(server.url, work, timeout_s=0.4)


def test_a_full_server_and_a_wrong_password_count_as_faults(server: OwnRedis) -> None:
    with redis.Redis.from_url(server.url) as raw:
        raw.config_set("maxmemory-policy", "noeviction")
        raw.config_set("maxmemory", "1mb")

    async def full(store: RedisStore, faults: Faults) -> None:
        with pytest.raises(RedisUnavailable):
            for number in range(200):
                await store.execute("SET", str(number), b"x" * 20_000)
        assert faults.number == 1 and await store.get("none") is None

    run(server.url, full)
    with redis.Redis.from_url(server.url) as raw:
        raw.config_set("requirepass", "secret")

    async def refused(store: RedisStore, faults: Faults) -> None:
        for _ in range(5):
            await fails(store)
        assert faults.open == [True]

    run(server.url, refused)


def test_a_busy_event_loop_does_not_count_as_a_slow_server(server: OwnRedis) -> None:
    async def work(store: RedisStore, faults: Faults) -> None:
        async def blocks() -> None:
            for _ in range(3):
                time.sleep(1.2)  # noqa: ASYNC251 - the loop must block here
                await asyncio.sleep(0.001)

        blocking = asyncio.create_task(blocks())
        while not blocking.done():
            assert await store.get("x") is None
        assert faults.number == 0

    run(server.url, work, timeout_s=1)


def test_calls_beyond_the_connections_wait(server: OwnRedis) -> None:
    async def work(store: RedisStore, faults: Faults) -> None:
        # Each call takes Redis 0.8 s, and all together take longer than one call may.
        await asyncio.gather(*(store.execute("BLPOP", f"none-{number}", 0.8) for number in range(4 * _MAX_CALLS)))
        assert faults.number == 0

    run(server.url, work, timeout_s=3)


def test_a_cancelled_call_does_not_break_others(server: OwnRedis) -> None:
    async def work(store: RedisStore, faults: Faults) -> None:
        for number in range(50):
            await store.execute("SET", str(number), str(number))

        async def get(number: int) -> None:
            assert await store.get(str(number % 50)) == str(number % 50).encode()

        for _ in range(20):
            tasks = [asyncio.create_task(get(number)) for number in range(100)]
            await asyncio.sleep(0.001)
            for task in tasks[::2]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert not [result for result in results if isinstance(result, AssertionError)]

    run(server.url, work, timeout_s=1)


def test_a_call_that_connects_while_the_store_is_closed_leaves_no_connection(server: OwnRedis, tmp_path: Path) -> None:
    connected, reply, left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_unix_connection(server.url.removeprefix("unix://"))

        async def replies() -> None:
            connected.set()
            await reply.wait()
            while data := await redis_reader.read(65_536):
                writer.write(data)

        answering = asyncio.create_task(replies())
        while data := await reader.read(65_536):
            redis_writer.write(data)
        left.set()
        redis_writer.close()
        await answering
        writer.close()

    async def work(store: RedisStore, _: Faults) -> None:
        async with await asyncio.start_unix_server(proxy, tmp_path / "proxy.sock"):
            waiting = asyncio.create_task(store.wait_for_entries("stream", b"0", 0.1))
            await connected.wait()
            await store.close()
            reply.set()
            await asyncio.wait([waiting])
            await left.wait()

    run(f"unix://{tmp_path}/proxy.sock", work, timeout_s=5)
