"""A request that kills engines is stopped; those that were there by chance are answered. Real engine processes."""

import asyncio
import os
from collections.abc import AsyncGenerator

import pytest

from cluster.models.folder import ServedModel
from deployments.dispatch import Dispatcher
from deployments.engine.process import EngineProcess, config_for
from deployments.engine.wire import Grammar, Request, Sampling, Tokens, decode_request, encode
from deployments.prompts import Prompts
from deployments.protocol.errors import ApiError
from deployments.question import Question, Turn


class Replica:
    """An engine process that is started again when it has died, asked as a Serve handle is."""

    def __init__(self, model: ServedModel) -> None:
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
        async for tokens in self._engine.generate(decode_request(payload)):
            yield encode(tokens)


class Response:
    """What a call through a handle gives."""

    def __init__(self, stream: AsyncGenerator[bytes, None]) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncGenerator[bytes, None]:
        return self._stream

    def cancel(self) -> None:
        pass


async def answer(dispatcher: Dispatcher, request: Request) -> list[int]:
    made: list[Tokens] = [tokens async for tokens in dispatcher.stream(request)]
    return [one for tokens in made for one in tokens.ids]


def test_poison_is_stopped_after_two_engines_and_nobody_else_suffers(bundled: ServedModel) -> None:
    prompts = Prompts(bundled)

    async def work() -> None:
        replica, carried = Replica(bundled), []
        dispatcher = Dispatcher(replica, lambda: carried.append(1))
        prompt = prompts.render(Question((Turn("user", "What is 345 times 678?"),), Sampling(1))).ids
        plain = Request(prompt, Sampling(300))
        poison = Request(prompt, Sampling(50, grammar=Grammar("root ::= (")))
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
