"""A request that kills engines is stopped; those that were there by chance are answered. Real engine processes."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator

import pytest

from cluster.models.folder import ServedModel
from deployments.common.errors import ApiError
from deployments.common.messages import EngineRequest, Grammar, Sampling, TokenBatch, decode_request, encode
from deployments.common.types import GenerationRequest, Message
from deployments.engine.process import EngineProcess, config_for
from deployments.generation.prompts import PromptRenderer
from deployments.routing.dispatcher import Dispatcher


class Replica:
    """An engine process that is started again when it has died, asked as a Serve handle is.

    kill: sent to it once it has made so many messages of a stream, for as long as `kills` says.
    """

    def __init__(self, model: ServedModel, kill: int = 0, at: int = 0, kills: int = 0) -> None:
        self._kill, self._at, self.kills = kill, at, kills
        self._config = config_for(model, tuple(sorted(os.sched_getaffinity(0))))
        self._engine: EngineProcess | None = None
        self._starting = asyncio.Lock()
        self.starts = 0

    def options(self, **chosen: object) -> "Replica":
        return self

    def remote(self, payload: bytes) -> "Response":
        return Response(self._generate(payload))

    async def stop(self) -> None:
        if self._engine is not None:
            await self._engine.stop()

    async def _generate(self, payload: bytes) -> AsyncGenerator[bytes, None]:
        async with self._starting:
            if self._engine is None or self._engine.closed.is_set():
                self._engine, _ = await EngineProcess.start(self._config, timeout_s=60)
                self.starts += 1
        engine, said = self._engine, 0
        self._end(engine, said)
        async for tokens in engine.generate(decode_request(payload)):
            yield encode(tokens)
            said += 1
            self._end(engine, said)

    def _end(self, engine: EngineProcess, said: int) -> None:
        if self.kills and said == self._at:
            self.kills -= 1
            os.kill(engine.pid, self._kill)


class Response:
    """What a call through a handle gives."""

    def __init__(self, stream: AsyncGenerator[bytes, None]) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncGenerator[bytes, None]:
        return self._stream

    def cancel(self) -> None:
        pass


async def answer(dispatcher: Dispatcher, request: EngineRequest) -> list[int]:
    made: list[TokenBatch] = [tokens async for tokens in dispatcher.stream(request)]
    return [one for tokens in made for one in tokens.ids]


def test_poison_is_stopped_after_two_engines_and_nobody_else_suffers(bundled: ServedModel) -> None:
    prompts = PromptRenderer(bundled)

    async def work() -> None:
        replica, carried = Replica(bundled), []
        dispatcher = Dispatcher(replica, "engine", lambda: carried.append(1))
        prompt = prompts.render(GenerationRequest((Message("user", "What is 345 times 678?"),), Sampling(1))).ids
        plain = EngineRequest(prompt, Sampling(300))
        poison = EngineRequest(prompt, Sampling(50, grammar=Grammar("root ::= (")))
        try:
            right = await answer(dispatcher, plain)
            waiting = [asyncio.create_task(answer(dispatcher, plain)) for _ in range(6)]
            await asyncio.sleep(0)
            with pytest.raises(ApiError) as refused:
                await answer(dispatcher, poison)
            assert refused.value.status == 500 and refused.value.body.error.code == "engine_failed"
            assert await asyncio.gather(*waiting) == [right] * 6
            assert carried and replica.starts in (2, 3), "two engines died of it"
        finally:
            await replica.stop()

    asyncio.run(asyncio.wait_for(work(), 120))


def test_who_kills_engines_from_outside_is_not_the_request(bundled: ServedModel) -> None:
    asyncio.run(asyncio.wait_for(killed(bundled, Replica(bundled, signal.SIGKILL, at=0, kills=3)), 60))


@pytest.mark.slow
def test_a_request_under_which_engines_crash_is_stopped_though_it_goes_on_each_time(bundled: ServedModel) -> None:
    replica = Replica(bundled, signal.SIGABRT, at=1, kills=9)
    with pytest.raises(ApiError) as refused:
        asyncio.run(asyncio.wait_for(killed(bundled, replica), 60))
    assert refused.value.body.error.code == "engine_failed"
    assert replica.starts == 5


async def killed(bundled: ServedModel, replica: Replica) -> None:
    """Asks; the answer must be the one of an engine that nobody kills."""
    prompt = (
        PromptRenderer(bundled).render(GenerationRequest((Message("user", "What is 345 times 678?"),), Sampling(1))).ids
    )
    request = EngineRequest(prompt, Sampling(300))
    calm = Replica(bundled)
    try:
        right = await answer(Dispatcher(calm, "engine", lambda: None), request)
        assert await answer(Dispatcher(replica, "engine", lambda: None), request) == right
        assert replica.kills == 0
    finally:
        await calm.stop()
        await replica.stop()
