"""A wait that lasts too long is ended; any number of short ones are not, and a cancelled task stays cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from deployments.common.deadlines import Deadline


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


def test_only_a_long_wait_is_ended() -> None:
    async def work() -> None:
        dog = Deadline()
        for _ in range(20):
            assert await dog.wait(asyncio.sleep(0.02, 7), 0.1) == 7
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            await dog.wait(asyncio.sleep(5), 0.1)
        assert asyncio.get_running_loop().time() - began < 1
        assert await dog.wait(asyncio.sleep(0.2, 8), 3) == 8, "and it goes on with another bound"
        with pytest.raises(TimeoutError):
            await dog.wait(asyncio.sleep(5), 0.1)
        await asyncio.sleep(0.2)  # between two waits it ends nothing
        dog.close()

    run(work())


def test_a_cancelled_task_is_cancelled() -> None:
    async def work() -> None:
        async def waits() -> None:
            await Deadline().wait(asyncio.sleep(5), 5)

        task = asyncio.create_task(waits())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work())


def test_what_a_wait_raises_is_raised() -> None:
    async def fails() -> None:
        raise ValueError

    async def work() -> None:
        dog = Deadline()
        with pytest.raises(ValueError):
            await dog.wait(fails(), 1)

    run(work())
