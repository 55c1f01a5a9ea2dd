"""Background tasks: failures are logged, services restart, and no task runs after `close`."""

import asyncio
import logging
from itertools import pairwise

import pytest

from deployments.common.tasks import TaskSupervisor
from tests.conftest import records_of


def test_a_service_that_fails_is_logged_and_restarted_with_growing_pauses(caplog: pytest.LogCaptureFixture) -> None:
    starts: list[float] = []
    running = asyncio.Event()

    async def service() -> None:
        starts.append(asyncio.get_running_loop().time())
        if len(starts) == 1:
            raise ValueError("first failure")
        if len(starts) == 2:
            cancelled = asyncio.get_running_loop().create_future()
            cancelled.cancel()
            await cancelled
        if len(starts) == 3:
            return
        running.set()
        await asyncio.Event().wait()

    async def work() -> None:
        tasks = TaskSupervisor(first_pause_s=0.02, max_pause_s=0.06)
        tasks.supervise("refresh", service)
        async with asyncio.timeout(60):
            await running.wait()
        await tasks.close()

    asyncio.run(work())
    assert len(starts) == 4
    pauses = [later - earlier for earlier, later in pairwise(starts)]
    assert pauses[0] >= 0.02 and pauses[1] >= 0.04 and pauses[2] >= 0.06
    assert [record.levelno for record in records_of(caplog, "dray.tasks")] == [logging.ERROR] * 3
    assert all(record.__dict__["task"] == "refresh" for record in records_of(caplog, "dray.tasks"))
    assert "first failure" in caplog.text and "Traceback" in caplog.text


def test_close_cancels_services_and_waits_for_their_cleanup(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[str] = []

    async def service() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            ended.append("service")

    async def finishing() -> None:
        await asyncio.sleep(0.05)
        ended.append("one-shot")

    async def work() -> None:
        tasks = TaskSupervisor()
        tasks.supervise("service", service)
        tasks.spawn("release", finishing())
        await asyncio.sleep(0)
        await tasks.close()
        assert sorted(ended) == ["one-shot", "service"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(work())
    assert not records_of(caplog, "dray.tasks")


def test_a_failed_one_shot_task_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise ValueError("no release")

    async def work() -> None:
        tasks = TaskSupervisor()
        tasks.spawn("release", fails())
        await asyncio.sleep(0.01)
        await tasks.close()

    asyncio.run(work())
    [record] = records_of(caplog, "dray.tasks")
    assert record.__dict__["task"] == "release" and "no release" in caplog.text
