"""Single flight over a real server: followers get all that the leader generates, and continue when it dies."""

import asyncio
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from cluster.records.cache import key_of
from cluster.redis_server import OwnRedis
from deployments.cache.flight_lease import FlightLease
from deployments.cache.flight_store import Acquisition, FlightStore
from deployments.cache.presence import Wish
from deployments.cache.single_flight import SingleFlight
from deployments.common.errors import ApiError
from deployments.common.messages import TokenBatch, TokenLogprobs
from deployments.routing.queue_class import QueueClass
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import store_at
from tests.deployments.waiting import until

LOGPROBS = TokenLogprobs(-0.5, ((3, -0.5), (8, -1.5)))
BATCHES = [
    TokenBatch([1, 2], cached_tokens=3, prompt_logprobs=[LOGPROBS]),
    TokenBatch([3], logprobs=[LOGPROBS]),
    TokenBatch([4, 5, 6]),
    TokenBatch([7], "stop"),
]
PERSON, BATCH = QueueClass("support", 1.0, batch=False), QueueClass("nightly", 1.0, batch=True)


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


def new_key() -> str:
    return key_of("m", "n", secrets.token_hex(20))


async def join(router: SingleFlight, key: str, queue_class: QueueClass = PERSON) -> FlightLease:
    acquired = await router.acquire(key, queue_class)
    assert isinstance(acquired, FlightLease)
    return acquired


async def followed(lease: FlightLease, count: int = 100) -> list[TokenBatch]:
    """The first batches of the first choice, up to `count`."""
    batches: list[TokenBatch] = []
    async for batch in lease.follow(0, 0):
        batches.append(batch)
        if len(batches) == count:
            break
    return batches


def ids(batches: list[TokenBatch]) -> list[int]:
    return [token for batch in batches for token in batch.ids]


def run(work: Callable[[], Coroutine[None, None, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await work()

    asyncio.run(bounded())


def test_followers_get_tokens_as_they_arrive_and_the_answer_is_stored(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 3) as (first, *following):
            key = new_key()
            leader = await join(first, key)
            assert not leader.joined and leader.role == "lead"
            leader.record(0, 0, BATCHES[0])
            followers = [await join(router, key) for router in following]
            assert all(follower.joined for follower in followers)
            while_generating = [await followed(follower, 1) for follower in followers]
            assert while_generating == [BATCHES[:1], BATCHES[:1]]
            leader.record(0, 0, BATCHES[1])
            leader.record(1, 2, BATCHES[3])
            leader.record(0, 0, BATCHES[2])
            leader.record(0, 0, BATCHES[3])
            reading = [asyncio.create_task(followed(follower)) for follower in followers]
            await leader.complete(b"answer", 100)
            assert [await task for task in reading] == [BATCHES, BATCHES]
            assert await first.acquire(key, PERSON) == b"answer"

    run(work)


def test_a_dead_leaders_follower_continues_within_two_seconds(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 3) as (first, second, third):
            key = new_key()
            leader, follower, bystander = [await join(router, key) for router in (first, second, third)]
            leader.record(0, 0, BATCHES[0])
            assert await followed(follower, 1) == await followed(bystander, 1) == BATCHES[:1]
            assert leader._task is not None
            leader._task.cancel()  # as if its process had died: it renews and publishes nothing
            died = time.monotonic()
            await until(lambda: "lead" in (follower.role, bystander.role))
            assert time.monotonic() - died < 2
            new, old = (follower, bystander) if follower.role == "lead" else (bystander, follower)
            assert await followed(new) == BATCHES[:1], "the new leader generates the rest"
            new.record(0, 0, BATCHES[1])
            new.record(0, 0, BATCHES[3])
            reading = asyncio.create_task(followed(old))
            await new.complete()
            assert ids(await reading) == [1, 2, 3, 7]
            leader.record(0, 0, BATCHES[2])
            assert not await leader.has_followers() and leader.role == "alone", "without the lock it publishes nothing"

    run(work)


def test_a_leader_knows_whether_anyone_follows_and_may_leave(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 2) as (first, second):
            key = new_key()
            leader = await join(first, key)
            assert not await leader.has_followers()
            follower = await join(second, key)
            leader.record(0, 0, BATCHES[0])
            assert await followed(follower, 1) == BATCHES[:1]
            assert await leader.has_followers()
            start = time.monotonic()
            await leader.release()
            await until(lambda: follower.role == "lead")
            assert time.monotonic() - start < 1
            await follower.release()

    run(work)


def test_a_leader_learns_the_queue_class_of_its_followers(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 2) as (first, second):
            key, lifted = new_key(), list[QueueClass]()
            leader = await join(first, key, BATCH)
            leader.on_lift = lifted.append
            follower = await join(second, key, BATCH)
            await until(lambda: BATCH in lifted)
            assert PERSON not in lifted
            follower.lift(PERSON)
            follower.lift(BATCH)
            start = time.monotonic()
            await until(lambda: PERSON in lifted)
            assert time.monotonic() - start < 2
            # The class is forgotten as soon as a lock would expire.
            del lifted[:]
            await until(lambda: lifted[-20:] == [PERSON] * 20)
            await follower.release()
            await until(lambda: not leader._followed)
            await leader.release()

    run(work)


@pytest.mark.parametrize("choices", [1, 2])
def test_an_error_of_the_question_itself_reaches_every_follower_and_ends_the_flight(
    server: OwnRedis, choices: int
) -> None:
    async def work() -> None:
        async with routers(server, 2) as (first, second):
            key = new_key()
            leader, follower = await join(first, key), await join(second, key)
            for choice in range(choices):
                leader.record(choice, 0, BATCHES[0])
            await leader.fail(ApiError(400, "Refused.", code="invalid_value", param="messages"))
            for choice in range(choices):
                received = []
                with pytest.raises(ApiError, match="Refused") as raised:
                    async for batch in follower.follow(choice, 0):
                        received.append(batch)
                assert received == BATCHES[:1], "what was generated before comes first"
                error = raised.value.body.error
                assert (raised.value.status, error.code, error.param) == (400, "invalid_value", "messages")
            await follower.release()
            fresh = await join(second, key)
            assert not fresh.joined and await followed(fresh) == [], "the next request tries again"
            await fresh.release()

    run(work)


def test_a_flight_that_ends_without_a_finish_leaves_nobody_waiting(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 2) as (first, second):
            key = new_key()
            leader, follower = await join(first, key), await join(second, key)
            leader.record(0, 0, BATCHES[0])
            reading = asyncio.create_task(followed(follower))
            await leader.complete()
            assert await reading == BATCHES[:1] and follower.role == "alone"

    run(work)


def test_an_unexpected_exception_is_logged_and_leaves_nobody_waiting(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with routers(server, 2) as (first, second):
            key = new_key()
            leader, follower = await join(first, key), await join(second, key)
            reading = asyncio.create_task(followed(follower))
            await until(lambda: bool(leader._followed))

            async def broken(self: FlightStore, *arguments: object) -> None:
                raise ValueError("a fault of the program")

            monkeypatch.setattr(FlightStore, "read", broken)
            monkeypatch.setattr(FlightStore, "publish", broken)
            assert await reading == []
            await until(lambda: leader.role == follower.role == "alone")
            assert not await leader.has_followers()
            assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR", "ERROR"]

    run(work)


def test_a_repeated_request_continues_where_the_cancelled_one_stopped(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 2) as (first, second):
            key = new_key()
            lease = await join(first, key)
            lease.record(0, 0, BATCHES[0])
            lease.record(0, 0, BATCHES[1])
            await lease.release()
            again = await join(second, key)
            assert not again.joined and again.name == lease.name and again.seed == lease.seed
            assert await followed(again) == BATCHES[:2]
            assert again.role == "lead"
            again.record(0, 0, BATCHES[3])
            await again.complete()
            # The flight ended and its answer was not stored: the next request starts a new flight.
            fresh = await join(first, key)
            assert fresh.name != lease.name and await followed(fresh) == []
            await fresh.release()

    run(work)


@pytest.mark.parametrize("trouble", ["garbage", "gap", "another flight", "gone"])
def test_inconsistent_tokens_are_never_passed_on(server: OwnRedis, trouble: str) -> None:
    async def work() -> None:
        async with routers(server, 2) as (first, second):
            key = new_key()
            leader = await join(first, key)
            follower = await join(second, key)
            leader.record(0, 0, BATCHES[0])
            assert await followed(follower, 1) == BATCHES[:1]
            stream = f"dray:tokens:{key.rpartition(':')[2]}"
            with redis.Redis.from_url(server.url) as raw:
                if trouble == "gone":
                    raw.delete(stream)
                    for batch in BATCHES[1:]:
                        leader.record(0, 0, batch)
                else:
                    [*_, (_, fields)] = raw.xrange(stream)
                    name, records = fields[b"flight"], fields[b"records"]
                    odd = {
                        "garbage": (name, b"\xff\x00"),
                        "gap": (name, records.replace(b"\x00\x00\x00", b"\x00\x00\x09", 1)),
                        "another flight": (b"0" * 16, records),
                    }[trouble]
                    raw.xadd(stream, {"flight": odd[0], "records": odd[1]})
            rest = await followed(follower)
            assert ids(rest) == ([1, 2, 3, 4, 5, 6, 7] if trouble == "gone" else [1, 2])
            assert follower.role == ("follow" if trouble == "gone" else "alone")
            await leader.release()
            await follower.release()

    run(work)


def test_a_follower_of_another_version_does_not_disturb_the_leader(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 1) as [router]:
            key = new_key()
            leader = await join(router, key)
            with redis.Redis.from_url(server.url) as raw:
                raw.zadd(f"dray:followers:{key.rpartition(':')[2]}", {b"0123456789abcdef": 2**50})
            assert not await leader.has_followers() and leader.role == "lead"
            await leader.release()

    run(work)


def test_without_redis_each_continues_alone() -> None:
    async def work() -> None:
        with tempfile.TemporaryDirectory(prefix="dray-r-") as folder:
            own = OwnRedis(Path(folder), memory_mb=16)
            own.start()
            async with routers(own, 2) as (first, second):
                key = new_key()
                leader, follower = await join(first, key), await join(second, key)
                leader.record(0, 0, BATCHES[0])
                assert await followed(follower, 1) == BATCHES[:1]
                own.stop()
                assert await followed(follower) == BATCHES[:1] and follower.role == "alone"
                assert not await leader.has_followers()
                await leader.complete(b"answer", 10)
                await follower.release()

    run(work)


def stream_of(key: str) -> str:
    return f"dray:tokens:{key.rpartition(':')[2]}"


async def die(router: SingleFlight, *leases: FlightLease) -> None:
    """As if the router's process had died: it neither shows that it lives, nor publishes, nor answers."""
    tasks = [router._presence._task, *(lease._task for lease in leases)]
    for lease in leases:
        lease._ended = True
    for task in tasks:
        assert task is not None
        task.cancel()
    await asyncio.wait([task for task in tasks if task is not None])


def test_no_token_goes_to_redis_while_nobody_follows(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 2) as (first, second):
            with redis.Redis.from_url(server.url) as raw:
                keys = [new_key() for _ in range(20)]
                leaders = [await join(first, key) for key in keys]
                raw.config_resetstat()
                for batch in BATCHES[:3] * 5:
                    for leader in leaders:
                        leader.record(0, 0, batch)
                    await asyncio.sleep(0.05)
                stats = raw.info("commandstats")
                assert not {"cmdstat_xadd", "cmdstat_evalsha", "cmdstat_eval"} & stats.keys(), stats
                follower = await join(second, keys[0])
                assert ids(await followed(follower, 15)) == ids(BATCHES[:3] * 5)
                assert raw.exists(stream_of(keys[0])) == 1
                assert not any(raw.exists(stream_of(key)) for key in keys[1:])
                await leaders[0].complete()
                await follower.release()
                raw.config_resetstat()
                for leader in leaders[1:]:
                    await leader.complete(b"answer", 100)
                stats = raw.info("commandstats")
                assert stats["cmdstat_evalsha"]["calls"] == len(leaders) - 1 and "cmdstat_xadd" not in stats
                assert not any(raw.exists(stream_of(key)) for key in keys[1:])

    run(work)


@pytest.mark.parametrize("published", [True, False])
def test_the_follower_of_a_dead_router_continues(server: OwnRedis, published: bool) -> None:
    async def work() -> None:
        async with routers(server, 2) as (first, second):
            key = new_key()
            leader = await join(first, key)
            leader.record(0, 0, BATCHES[0])
            if published:
                follower = await join(second, key)
                assert await followed(follower, 1) == BATCHES[:1]
                await die(first, leader)
            else:
                await die(first, leader)
                follower = await join(second, key)
            # Otherwise it generates all of it again, with the same seed.
            assert await followed(follower) == (BATCHES[:1] if published else [])
            assert follower.role == "lead" and follower.seed == leader.seed
            for batch in BATCHES[1:] if published else BATCHES:
                follower.record(0, 0, batch)
            await follower.complete(b"answer", 100)
            assert await second.acquire(key, PERSON) == b"answer"

    run(work)


def test_a_request_after_a_routers_death_does_not_wait_for_it(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 2) as (first, second):
            key = new_key()
            leader = await join(first, key)
            await die(first, leader)
            with redis.Redis.from_url(server.url) as raw:
                await until(lambda: not raw.exists(f"dray:router:{first._store.router}"))
            fresh = await join(second, key)
            assert not fresh.joined and fresh.role == "lead" and fresh.seed == leader.seed
            await fresh.release()

    run(work)


def test_a_resumable_flight_survives_its_router_though_nobody_followed(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 2) as (first, second):
            key = new_key()
            acquired = await first.acquire(key, PERSON, resumable=True)
            assert isinstance(acquired, FlightLease)
            for batch in BATCHES[:2]:
                acquired.record(0, 0, batch)
            with redis.Redis.from_url(server.url) as raw:
                await until(lambda: bool(raw.exists(stream_of(key))) and not acquired._pending)
            await die(first, acquired)
            again = await join(second, key)
            assert ids(await followed(again)) == [1, 2, 3] and again.role == "lead"
            assert again.seed == acquired.seed
            await again.complete()

    run(work)


def test_a_follower_that_joins_in_the_middle_or_last_gets_all(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 4) as (first, *others):
            key = new_key()
            leader = await join(first, key)
            leader.record(0, 0, BATCHES[0])
            early = await join(others[0], key)
            assert await followed(early, 1) == BATCHES[:1]
            await early.release()
            await until(lambda: not leader._followed)
            leader.record(0, 0, BATCHES[1])
            middle = await join(others[1], key)
            assert await followed(middle, 2) == BATCHES[:2]
            leader.record(0, 0, BATCHES[2])
            leader.record(0, 0, BATCHES[3])
            last = await join(others[2], key)
            await leader.complete()
            assert await followed(middle) == await followed(last) == BATCHES

    run(work)


@pytest.mark.parametrize("stored", [b"answer", b""])
def test_the_end_of_a_flight_waits_for_a_follower_that_it_has_not_heard_of(server: OwnRedis, stored: bytes) -> None:
    async def work() -> None:
        async with routers(server, 2) as (first, second):
            key = new_key()
            leader = await join(first, key)
            for batch in BATCHES:
                leader.record(0, 0, batch)
            follower = await join(second, key)
            assert not leader._followed, "its wish is on the way"
            await leader.complete(stored, 100)
            assert await followed(follower) == BATCHES

    run(work)


def test_a_flight_that_another_router_took_is_given_up(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 2) as (first, second):
            key = new_key()
            leader = await join(first, key)
            with redis.Redis.from_url(server.url) as raw:
                raw.delete(f"dray:leader:{key.rpartition(':')[2]}")  # as if Redis had lost it
            other = await join(second, key)
            assert not other.joined and other.name != leader.name
            await leader.complete(b"late", 100)
            other.record(0, 0, BATCHES[3])
            await other.complete(b"answer", 100)
            assert await first.acquire(key, PERSON) == b"answer"

    run(work)


@pytest.mark.parametrize("same_router", [True, False])
def test_a_client_that_leaves_while_redis_gives_its_router_the_lead_stops_nobody(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, same_router: bool
) -> None:
    async def work() -> None:
        async with routers(server, 2) as (first, second):
            key, leads, acquire = new_key(), asyncio.Event(), FlightStore.acquire

            async def held(self: FlightStore, keys: list[str], name: str) -> Acquisition:
                await acquire(self, keys, name)
                leads.set()
                return await asyncio.Future[Acquisition]()

            with monkeypatch.context() as patch:
                patch.setattr(FlightStore, "acquire", held)
                leaving = asyncio.create_task(first.acquire(key, PERSON))
                await leads.wait()
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            lease = await join(first if same_router else second, key)
            assert lease.joined
            await until(lambda: lease.role == "lead")
            await lease.complete()

    run(work)


@pytest.mark.parametrize(
    "end",
    [
        lambda lease: lease.complete(),
        lambda lease: lease.fail(ApiError(400, "no", code="a", param="b")),
        lambda lease: lease.release(),
    ],
)
def test_a_flight_ends_though_its_end_is_cancelled(
    server: OwnRedis, end: Callable[[FlightLease], Coroutine[None, None, None]]
) -> None:
    async def work() -> None:
        async with routers(server, 1) as (router,):
            key = new_key()
            ending = asyncio.create_task(end(await join(router, key)))
            await asyncio.sleep(0)
            ending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await ending
            lease = await join(router, key)
            await until(lambda: lease.role != "follow")
            await lease.complete()

    run(work)


def test_garbage_in_the_inbox_disturbs_nobody(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 2) as (first, second):
            key = new_key()
            leader = await join(first, key)
            inbox = f"dray:inbox:{first._store.router}"
            with redis.Redis.from_url(server.url) as raw:
                raw.xadd(inbox, {"wish": b"\xff\x00"})
                raw.xadd(inbox, {"other": b"1"})
                stranger = Wish("0" * 16, new_key(), "f" * 16, PERSON)
                raw.xadd(inbox, {"wish": msgspec.msgpack.encode(stranger)})
            leader.record(0, 0, BATCHES[0])
            follower = await join(second, key)
            assert await followed(follower, 1) == BATCHES[:1]
            assert leader.role == "lead"
            await leader.complete()
            await follower.release()

    run(work)


def test_all_flights_of_a_router_publish_together(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 1) as [router]:
            leases = [await router.acquire(new_key(), PERSON, resumable=True) for _ in range(20)]
            leaders = [lease for lease in leases if isinstance(lease, FlightLease)]
            sizes: list[int] = []
            run_all = router._store._publish.run_all

            async def counted(calls: Any) -> list[Any]:
                sizes.append(len(calls))
                return await run_all(calls)

            router._store._publish.run_all = counted  # type: ignore[method-assign]
            for leader in leaders:
                leader.record(0, 0, BATCHES[0])
            await until(lambda: not any(leader._pending for leader in leaders))
            assert max(sizes) > len(leaders) / 2, sizes
            for leader in leaders:
                await leader.release()

    run(work)
