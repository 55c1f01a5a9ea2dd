"""Single flight over a real server: followers see all that the leader makes, and one goes on when it dies."""

import asyncio
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis

from cluster.records.cache import key_of
from cluster.redis_server import OwnRedis
from deployments.cache.single_flight import FlightLease, SingleFlight
from deployments.common.messages import TokenBatch
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import store_at

MADE = [TokenBatch([1, 2], cached_tokens=3), TokenBatch([3]), TokenBatch([4, 5, 6]), TokenBatch([7], "stop")]


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(64) as own:
        yield own


@asynccontextmanager
async def routers(server: OwnRedis, count: int) -> AsyncIterator[list[SingleFlight]]:
    stores = [store_at(server.url) for _ in range(count)]
    yield [SingleFlight(store) for store in stores]
    for store in stores:
        await store.close()


async def join(router: SingleFlight, digest: str) -> FlightLease:
    found = await router.acquire(key_of("m", "n", digest), digest)
    assert isinstance(found, FlightLease)
    return found


async def told(flight: FlightLease, most: int = 100) -> list[TokenBatch]:
    seen: list[TokenBatch] = []
    async for tokens in flight.follow(0, 0):
        seen.append(tokens)
        if len(seen) == most:
            break
    return seen


def ids(several: list[TokenBatch]) -> list[int]:
    return [one for tokens in several for one in tokens.ids]


def run(work: Callable[[], Coroutine[None, None, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await work()

    asyncio.run(bounded())


async def until(fact: Callable[[], bool]) -> None:
    while not fact():
        await asyncio.sleep(0.01)


def test_followers_see_all_as_it_comes_and_then_it_is_known(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 3) as (one, *others):
            digest = secrets.token_hex(20)
            leader = await join(one, digest)
            assert not leader.joined and leader.role == "lead"
            leader.record(0, 0, MADE[0])
            followers = [await join(other, digest) for other in others]
            assert all(follower.joined for follower in followers)
            assert [await told(follower, 1) for follower in followers] == [MADE[:1], MADE[:1]], "while it is being made"
            leader.record(0, 0, MADE[1])
            leader.record(1, 2, MADE[3])
            leader.record(0, 0, MADE[2])
            leader.record(0, 0, MADE[3])
            reading = [asyncio.create_task(told(follower)) for follower in followers]
            await leader.complete(b"answer", 100)
            assert [await task for task in reading] == [MADE, MADE]
            assert await one.acquire(key_of("m", "n", digest), digest) == b"answer"

    run(work)


def test_a_dead_leaders_follower_goes_on_within_two_seconds(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 3) as (one, other, third):
            digest = secrets.token_hex(20)
            leader, follower, bystander = [await join(router, digest) for router in (one, other, third)]
            leader.record(0, 0, MADE[0])
            assert await told(follower, 1) == await told(bystander, 1) == MADE[:1]
            assert leader._task is not None
            leader._task.cancel()  # as if its process had died: it renews nothing and says nothing
            died = time.monotonic()
            await until(lambda: "lead" in (follower.role, bystander.role))
            assert time.monotonic() - died < 2
            new, old = (follower, bystander) if follower.role == "lead" else (bystander, follower)
            assert await told(new) == MADE[:1], "what is missing is its own to make"
            new.record(0, 0, MADE[1])
            new.record(0, 0, MADE[3])
            reading = asyncio.create_task(told(old))
            await new.complete(b"", 1)
            assert ids(await reading) == [1, 2, 3, 7]
            leader.record(0, 0, MADE[2])
            assert not await leader.has_followers() and leader.role == "alone", "it tells nothing without the lock"

    run(work)


def test_leader_knows_whether_anyone_follows_and_may_leave(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 2) as (one, other):
            digest = secrets.token_hex(20)
            leader = await join(one, digest)
            assert not await leader.has_followers()
            follower = await join(other, digest)
            leader.record(0, 0, MADE[0])
            assert await told(follower, 1) == MADE[:1]
            assert await leader.has_followers()
            left = time.monotonic()
            await leader.release()
            await until(lambda: follower.role == "lead")
            assert time.monotonic() - left < 1
            await follower.release()

    run(work)


def test_who_asks_again_soon_goes_on_where_the_last_one_left(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 2) as (one, other):
            digest = secrets.token_hex(20)
            first = await join(one, digest)
            first.record(0, 0, MADE[0])
            first.record(0, 0, MADE[1])
            await first.release()
            again = await join(other, digest)
            assert not again.joined and again.name == first.name
            assert await told(again) == MADE[:2]
            assert again.role == "lead"
            again.record(0, 0, MADE[3])
            await again.complete(b"", 1)
            # It ended and was not kept: the next begins anew.
            fresh = await join(one, digest)
            assert fresh.name != first.name and await told(fresh) == []
            await fresh.release()

    run(work)


@pytest.mark.parametrize("trouble", ["garbage", "gap", "another flight", "gone"])
def test_what_does_not_fit_is_never_told(server: OwnRedis, trouble: str) -> None:
    async def work() -> None:
        async with routers(server, 2) as (one, other):
            digest = secrets.token_hex(20)
            leader = await join(one, digest)
            follower = await join(other, digest)
            leader.record(0, 0, MADE[0])
            assert await told(follower, 1) == MADE[:1]
            stream = f"dray:tokens:{{{digest}}}"
            with redis.Redis.from_url(server.url) as raw:
                if trouble == "gone":
                    raw.delete(stream)
                    for one_made in MADE[1:]:
                        leader.record(0, 0, one_made)
                else:
                    [*_, (_, fields)] = raw.xrange(stream)
                    name, records = fields[b"flight"], fields[b"records"]
                    odd = {
                        "garbage": (name, b"\xff\x00"),
                        "gap": (name, records.replace(b"\x00\x00\x00", b"\x00\x00\x09", 1)),
                        "another flight": (b"0" * 16, records),
                    }[trouble]
                    raw.xadd(stream, {"flight": odd[0], "records": odd[1]})
            rest = await told(follower)
            assert ids(rest) == ([1, 2, 3, 4, 5, 6, 7] if trouble == "gone" else [1, 2])
            assert follower.role == ("follow" if trouble == "gone" else "alone")
            await leader.release()
            await follower.release()

    run(work)


def test_without_redis_each_goes_on_alone() -> None:
    async def work() -> None:
        with tempfile.TemporaryDirectory(prefix="dray-r-") as folder:
            own = OwnRedis(Path(folder), memory_mb=16)
            own.start()
            async with routers(own, 2) as (one, other):
                digest = secrets.token_hex(20)
                leader, follower = await join(one, digest), await join(other, digest)
                leader.record(0, 0, MADE[0])
                assert await told(follower, 1) == MADE[:1]
                own.stop()
                assert await told(follower) == MADE[:1] and follower.role == "alone"
                assert not await leader.has_followers()
                await leader.complete(b"answer", 10)
                await follower.release()

    run(work)
