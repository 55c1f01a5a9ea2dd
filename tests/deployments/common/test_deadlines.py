"""Deadline ends a wait that lasts too long, does not affect short waits, and keeps a cancelled task cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from deployments.common.deadlines import Deadline


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


def test_only_a_long_wait_times_out() -> None:
    async def work() -> None:
        deadline = Deadline()
        for _ in range(20):
            assert await deadline.wait(asyncio.sleep(0.02, 7), 0.1) == 7
        started = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            await deadline.wait(asyncio.sleep(5), 0.1)
        assert asyncio.get_running_loop().time() - started < 1
        assert await deadline.wait(asyncio.sleep(0.2, 8), 3) == 8, "the next wait has its own limit"
        with pytest.raises(TimeoutError):
            await deadline.wait(asyncio.sleep(5), 0.1)
        await asyncio.sleep(0.2)  # nothing expires between two waits
        deadline.close()

    run(work())


def test_a_cancelled_task_stays_cancelled() -> None:
    async def work() -> None:
        async def waits() -> None:
            await Deadline().wait(asyncio.sleep(5), 5)

        task = asyncio.create_task(waits())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work())


def test_an_exception_of_the_awaitable_is_raised() -> None:
    async def fails() -> None:
        raise ValueError

    async def work() -> None:
        deadline = Deadline()
        with pytest.raises(ValueError):
            await deadline.wait(fails(), 1)

    run(work())
