"""A question without a stored answer costs two round trips to the answers' Redis before an engine gets it, and few
commands in all."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest

from cluster.models.folder import ServedModel
from cluster.redis_server import OwnRedis
from deployments.cache.answers import CacheControl
from deployments.common.messages import ReplicaStats
from deployments.common.prefix import BLOCK_TOKENS, block_keys
from deployments.common.redis import RedisStore
from deployments.generation.context import RequestContext
from deployments.generation.prompts import PromptRenderer
from deployments.generation.service import CacheLookup
from deployments.routing.dispatcher import Dispatcher
from deployments.routing.division import RouterPart
from deployments.routing.prefix_index import PrefixIndex
from deployments.routing.registry import EngineReplicas
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import store_at
from tests.deployments.generation.test_service import Router, World, new_question, result_of, team
from tests.deployments.routing.test_dispatcher import Replica, Response

APPLICATION = "round-trips"
LATENCY_S = 0.05
MAX_COMMANDS = 5
"""Of a request. One more, from its endpoint, keeps the answer for a vote on it."""
_COMMAND = re.compile(rb"^\*\d+\r$", re.MULTILINE)
LONG = "Let us begin with something that fills more than a block of the cache. " * 4


class Wire:
    """A proxy of Redis that counts commands, and round trips, where calls at the same time are one."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._under_way: set[asyncio.StreamReader] = set()
        self.trips = 0
        self.commands = 0

    async def settle(self) -> None:
        """Waits until what requests left to be done beside them is done."""
        trips = -1
        while trips != self.trips or self._under_way:
            trips = self.trips
            await asyncio.sleep(4 * LATENCY_S)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_unix_connection(self._socket)
        replies = asyncio.create_task(self._replies(reader, redis_reader, writer))
        while data := await reader.read(65_536):
            # A router shows that it lives and reads its inbox beside all requests; none waits for that.
            if b"dray:router:" not in data and b"dray:inbox:" not in data:
                if not self._under_way:
                    self.trips += 1
                self._under_way.add(reader)
                self.commands += len(_COMMAND.findall(data))
            redis_writer.write(data)
        replies.cancel()
        self._under_way.discard(reader)  # a call that its client has given up
        redis_writer.close()
        writer.close()

    async def _replies(
        self, call: asyncio.StreamReader, redis_reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await redis_reader.read(65_536):
            await asyncio.sleep(LATENCY_S)
            self._under_way.discard(call)
            writer.write(data)


class WatchedReplica(Replica):
    """A replica that records the number of round trips before each request."""

    def __init__(self, model: ServedModel, trips: Callable[[], int]) -> None:
        super().__init__(model)
        self.trips_before: list[int] = []
        self._trips = trips

    def remote(self, payload: bytes, /) -> Response:
        self.trips_before.append(self._trips())
        return super().remote(payload)


@pytest.fixture(scope="module")
def servers() -> Iterator[Sequence[OwnRedis]]:
    with redis_server(64) as answers, redis_server(64) as teams:
        yield answers, teams


@asynccontextmanager
async def router_behind(
    servers: Sequence[OwnRedis], bundled: ServedModel
) -> AsyncIterator[tuple[Router, Wire, WatchedReplica, RedisStore]]:
    answers, teams = servers
    wire = Wire(answers.url.removeprefix("unix://"))
    server = await asyncio.start_server(wire.connect, "127.0.0.1", 0)
    url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    engine = WatchedReplica(bundled, lambda: wire.trips)
    store = store_at(url)
    replicas = EngineReplicas("router")
    replicas.update({"one-replica": ReplicaStats(), "another-replica": ReplicaStats()})
    dispatcher = Dispatcher(engine, replicas, lambda: None, PrefixIndex(store, "a", APPLICATION))
    world = World(answers, teams, bundled, PromptRenderer(bundled), engine, asyncio.Runner())
    router = Router(world, dispatcher, store)
    router.queue.resize(RouterPart.even(8), 100, 10**6)
    try:
        yield router, wire, engine, store
    finally:
        await engine.stop()
        for store in router.stores:
            await store.close()
        server.close()


async def open_connections(store: RedisStore) -> None:
    """Opens more than a request needs: a router's sign of life may use one, and opening another takes three trips."""
    await asyncio.gather(*(store.get(str(number)) for number in range(8)))


@pytest.mark.parametrize(
    ("control", "choices"),
    [(CacheControl(), 1), (CacheControl(), 2), (CacheControl(stores=False), 1), (CacheControl(max_age_s=60), 1)],
    ids=["single flight", "two choices", "bypass", "max-age"],
)
def test_a_miss_makes_two_round_trips(
    servers: Sequence[OwnRedis], bundled: ServedModel, control: CacheControl, choices: int
) -> None:
    async def work() -> None:
        async with router_behind(servers, bundled) as (router, wire, engine, store):

            async def context(question: str) -> RequestContext:
                return await router.context(LONG + question, team("any"), control=control, choices=choices)

            async def ask(question: str) -> None:
                assert await router.service.lookup(await context(question)) is None
                await result_of(await router.service.answer(await context(question)))
                assert not router.queue.queued

            await open_connections(store)
            await ask(new_question())  # loads scripts, starts the engine
            blocks = block_keys(engine.requests[-1].prompt_ids[:-1])
            await wire.settle()  # the dispatcher records the prompt
            for block in blocks:
                await store.execute("SET", f"dray:kv:{{a:{APPLICATION}}}:{block.hex()}", "another-replica")
            del engine.requests[:], engine.trips_before[:]
            before, sent = wire.trips, wire.commands
            await ask(new_question())
            assert [trips - before for trips in engine.trips_before] == [2] * choices
            await wire.settle()
            assert 0 < wire.commands - sent <= MAX_COMMANDS * choices
            for request in engine.requests:
                assert (request.prefix_replica, request.prefix_tokens) == ("another-replica", 3 * BLOCK_TOKENS)

    asyncio.run(asyncio.wait_for(work(), 60))


def test_several_prompts_are_looked_up_in_one_round_trip(servers: Sequence[OwnRedis], bundled: ServedModel) -> None:
    async def work() -> None:
        async with router_behind(servers, bundled) as (router, wire, engine, store):

            async def ask(number: int) -> None:
                contexts = [await router.context(f"{LONG}{number} + {index}", team("any")) for index in range(3)]
                await result_of(CacheLookup("bypass", subscriber=await router.service.answer_many(contexts)))

            await open_connections(store)
            await ask(1)
            await wire.settle()
            del engine.requests[:], engine.trips_before[:]
            before = wire.trips
            await ask(2)
            assert [trips - before for trips in engine.trips_before] == [1, 1, 1]

    asyncio.run(asyncio.wait_for(work(), 60))
