"""A request that crashes engines is stopped; requests that ran beside it are answered. Real engine processes."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator

import msgspec
import psutil
import pytest

from cluster.models.folder import ServedModel
from cluster.redis_server import OwnRedis
from deployments.common.errors import ApiError
from deployments.common.messages import (
    NO_PLACE,
    EngineRequest,
    ReplicaStats,
    Sampling,
    TokenBatch,
    decode_request,
    encode,
)
from deployments.common.prefix import BLOCK_TOKENS, block_keys
from deployments.common.types import GenerationRequest, Message
from deployments.engine.model import config_for
from deployments.engine.process import EngineProcess
from deployments.generation.prompts import PromptRenderer
from deployments.routing.dispatcher import Dispatcher
from deployments.routing.prefix_holders import pack
from deployments.routing.prefix_index import PrefixIndex, PrefixLocation
from deployments.routing.registry import EngineReplicas
from deployments.routing.stream_progress import MAX_REFUSALS
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import store_at
from tests.deployments.waiting import until

POISON = 666
"""Seed of a request that crashes engines. None is known that really does."""


class Replica:
    """An engine process that is restarted when it has died, with the interface of a Serve handle."""

    def __init__(
        self, model: ServedModel, kill: int = 0, at: int = 0, kills: int = 0, step_tokens: int | None = None
    ) -> None:
        """kill: the signal that is sent to the process after `at` batches of a stream. kills: how often in total.
        step_tokens: of a prompt in one step; None: the model's."""
        self._kill, self._at, self.kills = kill, at, kills
        self._config = config_for(model, tuple(sorted(os.sched_getaffinity(0))))
        if step_tokens is not None:
            self._config = msgspec.structs.replace(self._config, max_num_batched_tokens=step_tokens)
        self.engine: EngineProcess | None = None
        self._starting = asyncio.Lock()
        self.starts = 0
        self.requests: list[EngineRequest] = []

    def options(self, *, stream: bool, method_name: str) -> "Replica":
        assert (stream, method_name) == (True, "generate")
        return self

    def remote(self, payload: bytes, /) -> "Response":
        self.requests.append(decode_request(payload))
        return Response(self._generate(self.requests[-1]))

    async def stop(self) -> None:
        if self.engine is not None:
            await self.engine.stop()

    async def _generate(self, request: EngineRequest) -> AsyncGenerator[bytes, None]:
        yield encode(TokenBatch([], replica="r1"))
        async with self._starting:
            if self.engine is None or self.engine.closed.is_set():
                self.engine, _ = await EngineProcess.start(self._config, timeout_s=60)
                self.starts += 1
        engine, sent = self.engine, 0
        if request.sampling.seed == POISON:
            os.kill(engine.pid, signal.SIGABRT)
        self._kill_at(engine, sent)
        async for batch in engine.generate(request):
            yield encode(batch)
            sent += 1
            self._kill_at(engine, sent)

    def _kill_at(self, engine: EngineProcess, sent: int) -> None:
        if self.kills and sent == self._at:
            self.kills -= 1
            os.kill(engine.pid, self._kill)


class Response:
    """The response of a Serve handle."""

    def __init__(self, stream: AsyncGenerator[bytes, None]) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncGenerator[bytes, None]:
        return self._stream

    def cancel(self) -> None:
        pass


async def answer(dispatcher: Dispatcher, request: EngineRequest) -> list[int]:
    return [token async for batch in dispatcher.stream(request) for token in batch.ids]


def prompt_of(model: ServedModel, question: str) -> list[int]:
    return PromptRenderer(model).render(GenerationRequest((Message("user", question),), Sampling(1))).ids


def test_a_poisonous_request_is_stopped_after_two_engines_and_others_are_answered(bundled: ServedModel) -> None:
    async def work() -> None:
        replica, resumed = Replica(bundled), list[int]()
        replicas = EngineReplicas("router")
        dispatcher = Dispatcher(replica, replicas, lambda: resumed.append(1))
        prompt = prompt_of(bundled, "What is 345 times 678?")
        plain = EngineRequest(prompt, Sampling(300))
        poison = EngineRequest(prompt, Sampling(50, seed=POISON))
        try:
            right = await answer(dispatcher, plain)
            beside = [asyncio.create_task(answer(dispatcher, plain)) for _ in range(6)]
            await asyncio.sleep(0)
            with pytest.raises(ApiError) as refused:
                await answer(dispatcher, poison)
            assert refused.value.status == 500 and refused.value.body.error.code == "engine_failed"
            assert await asyncio.gather(*beside) == [right] * 6
            assert resumed and replica.starts in (2, 3), "the request crashed two engines"
            assert replicas.entries == 0
        finally:
            await replica.stop()

    asyncio.run(asyncio.wait_for(work(), 120))


def test_kills_from_outside_are_not_blamed_on_the_request(bundled: ServedModel) -> None:
    asyncio.run(asyncio.wait_for(check_killed(bundled, Replica(bundled, signal.SIGKILL, at=0, kills=3)), 200))


@pytest.mark.slow
def test_a_prefill_that_its_engine_dies_in_is_computed_again_elsewhere(bundled: ServedModel) -> None:
    """And one that its client leaves is right for the next who sends the same prompt."""
    prompt = [5 + (n * n) % 1000 for n in range(6000)]
    request = EngineRequest(prompt, Sampling(20, ignore_eos=True))

    async def begun(replica: Replica, task: "asyncio.Task[list[int]]") -> None:
        """Waits until the engine has computed for a while, which is before the first token."""

        async def runs() -> bool:
            return replica.engine is not None and not replica.engine.closed.is_set()

        async def computes() -> bool:
            return sum(engine.cpu_times()[:2]) > before + 0.05

        await until(runs, 60)
        assert replica.engine is not None
        engine = psutil.Process(replica.engine.pid)
        before = sum(engine.cpu_times()[:2])
        await until(computes, 60)
        assert not task.done(), "the prompt is too short for this machine"

    async def work() -> None:
        replica = Replica(bundled, step_tokens=32)
        dispatcher = Dispatcher(replica, EngineReplicas("router"), lambda: None)
        try:
            right = await answer(dispatcher, request)
            await replica.stop()
            asked = asyncio.create_task(answer(dispatcher, request))
            await begun(replica, asked)
            assert replica.engine is not None
            os.kill(replica.engine.pid, signal.SIGKILL)
            assert await asked == right
            assert (replica.starts, replica.requests[-1].generated_tokens) == (3, 0), "it died before the first token"
            await replica.stop()
            left = asyncio.create_task(answer(dispatcher, request))
            await begun(replica, left)
            left.cancel()
            assert await answer(dispatcher, request) == right
            assert replica.starts == 4
        finally:
            await replica.stop()

    asyncio.run(asyncio.wait_for(work(), 120))


@pytest.mark.slow
def test_a_request_that_crashes_engines_is_stopped_though_it_delivers_tokens_each_time(bundled: ServedModel) -> None:
    replica = Replica(bundled, signal.SIGABRT, at=1, kills=9)
    with pytest.raises(ApiError) as refused:
        asyncio.run(asyncio.wait_for(check_killed(bundled, replica), 200))
    assert refused.value.body.error.code == "engine_failed"
    assert replica.starts == 5


async def check_killed(bundled: ServedModel, replica: Replica) -> None:
    """Checks that the replica's answer is the same as that of an engine that is never killed."""
    request = EngineRequest(prompt_of(bundled, "What is 345 times 678?"), Sampling(300))
    calm = Replica(bundled)
    try:
        right = await answer(Dispatcher(calm, EngineReplicas("router"), lambda: None), request)
        assert await answer(Dispatcher(replica, EngineReplicas("router"), lambda: None), request) == right
        assert replica.kills == 0
    finally:
        await calm.stop()
        await replica.stop()


def test_routers_share_where_a_prompt_is_cached_and_streams_need_no_redis(bundled: ServedModel) -> None:
    async def work(server: OwnRedis) -> None:
        stores = [store_at(server.url) for _ in range(2)]
        replica = Replica(bundled)
        fleets = [EngineReplicas(f"router {number}") for number in range(2)]
        first_router, second_router = (
            Dispatcher(replica, fleet, lambda: None, PrefixIndex(store, "a", "engine"))
            for fleet, store in zip(fleets, stores, strict=True)
        )
        prompt = prompt_of(bundled, "What is 345 times 678? " * 10)
        all_but_one_block = PrefixLocation("r1", ((len(prompt) - 1) // BLOCK_TOKENS - 1) * BLOCK_TOKENS)
        request = EngineRequest(prompt, Sampling(4), prefix_replica="r7", prefix_tokens=BLOCK_TOKENS)
        try:
            await answer(first_router, request)
            fleets[1].update({"r1": ReplicaStats(), "r2": ReplicaStats()})
            assert await second_router.locate_prefix(prompt) == PrefixLocation(), "with one replica nothing is recorded"
            fleets[0].update({"r1": ReplicaStats(), "r2": ReplicaStats()})
            await answer(first_router, request)

            async def recorded() -> bool:
                return await second_router.locate_prefix(prompt) == all_but_one_block

            await until(recorded)
            fleets[1].update({"r1": ReplicaStats()})
            assert await second_router.locate_prefix(prompt) == PrefixLocation(), (
                "with one replica nothing is looked up"
            )
            await asyncio.to_thread(server.stop)
            assert len(await answer(first_router, request)) == 4
            located = [(sent.prefix_replica, sent.prefix_tokens) for sent in replica.requests]
            # An attempt is lost, and another one follows, where the engine takes long to start.
            assert len(located) >= 3 and set(located) == {("r7", BLOCK_TOKENS)}, "the caller's location is passed on"
        finally:
            await replica.stop()
            for store in stores:
                await store.close()

    with redis_server(16) as server:
        asyncio.run(asyncio.wait_for(work(server), 200))


class FullReplicas:
    """Replicas without an engine, of which all or some are full, with the interface of a Serve handle."""

    def __init__(self, replicas: EngineReplicas, full: set[str]) -> None:
        self._replicas, self.full = replicas, full
        self.asked: list[str] = []

    def options(self, *, stream: bool, method_name: str) -> "FullReplicas":
        return self

    def remote(self, payload: bytes, /) -> "Response":
        request = decode_request(payload)
        name = self._replicas.choose(request, self._replicas.states)[0]
        self._replicas.accepted(request, name)
        self.asked.append(name)
        return Response(self._generate(request, name))

    async def _generate(self, request: EngineRequest, name: str) -> AsyncGenerator[bytes, None]:
        yield encode(TokenBatch([], replica=name))
        if request.may_refuse and name in self.full:
            yield encode(TokenBatch([], "lost", reason=NO_PLACE))
        else:
            yield encode(TokenBatch([7], "stop"))


def test_a_full_replica_refuses_and_another_takes_the_request_at_once() -> None:
    names = {f"r{index}" for index in range(20)}

    async def ask(full: set[str], prefix_tokens: int = 0) -> list[str]:
        replicas = EngineReplicas("router")
        replicas.update(dict.fromkeys(names, ReplicaStats(300, 60_000)))
        handle, resumed = FullReplicas(replicas, full), list[str]()
        dispatcher = Dispatcher(handle, replicas, lambda: resumed.append("resumed"))
        request = EngineRequest([1] * 200, Sampling(4), prefix_replica="r3", prefix_tokens=prefix_tokens)
        assert await answer(dispatcher, request) == [7]
        assert not resumed, "nothing was lost"
        assert replicas.entries == len(names)
        keys = pack(block_keys(request.prompt_ids))
        held = [state.cached_tokens(replicas.states.prefixes.match(keys)) > 0 for state in replicas.states.values()]
        assert held.count(True) == 1, "those that refused it hold nothing of it"
        return handle.asked

    async def work() -> None:
        [owner] = await ask(set())
        first, second = await ask({owner})
        assert first == owner != second
        asked = await ask(names)
        assert len(asked) == MAX_REFUSALS + 1 and len(set(asked[:-1])) == MAX_REFUSALS, "the last one queues it"
        assert await ask(names, 160) == ["r3"], "its prompt is cached there, so it waits there"

    asyncio.run(asyncio.wait_for(work(), 60))
