"""Background tasks with an owner: a failure is logged, a service restarts, and all end with their owner."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger("dray.tasks")

_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 30.0
_CLOSE_S = 2.0
"""Time that `close` leaves to one-shot tasks before it cancels them, and to cancelled tasks before it gives up."""
_UNBROKEN: set[asyncio.Task[None]] = set()
"""The event loop itself keeps no reference to a task."""


class TaskSupervisor:
    """Owns the background tasks of an event loop. Close it at the end."""

    def __init__(self, first_pause_s: float = _FIRST_PAUSE_S, max_pause_s: float = _MAX_PAUSE_S) -> None:
        """first_pause_s: pause before the first restart; it doubles with each further one, up to max_pause_s."""
        self._first_pause_s = first_pause_s
        self._max_pause_s = max_pause_s
        self._services: set[asyncio.Task[None]] = set()
        self._spawned: set[asyncio.Task[None]] = set()

    def supervise(self, name: str, service: Callable[[], Coroutine[None, None, None]]) -> None:
        """Runs a service until `close`. One that raises or returns is logged, and started again after a pause.

        name: for the log.
        """
        self._start(self._services, self._restart(name, service))

    def spawn(self, name: str, work: Coroutine[None, None, None]) -> None:
        """Runs a short task once. A failure is logged."""
        self._start(self._spawned, self._run(name, work))

    async def close(self) -> None:
        """Cancels all services, lets one-shot tasks finish for up to 2 s, and waits until all have ended."""
        for service in self._services:
            service.cancel()
        if self._spawned:
            await asyncio.wait(set(self._spawned), timeout=_CLOSE_S)
        for task in self._spawned:
            task.cancel()
        if remaining := self._services | self._spawned:
            _, running = await asyncio.wait(remaining, timeout=_CLOSE_S)
            if running:
                log.error("background tasks do not end", extra={"tasks": len(running)})

    def _start(self, tasks: set[asyncio.Task[None]], work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _restart(self, name: str, service: Callable[[], Coroutine[None, None, None]]) -> None:
        loop, pause_s = asyncio.get_running_loop(), self._first_pause_s
        while True:
            started, error = loop.time(), None
            try:
                await service()
            except (Exception, asyncio.CancelledError) as raised:
                # Also raised by a future that somebody else cancelled; only a cancelled task is to end.
                if _cancelled():
                    raise
                error = raised
            if loop.time() - started > self._max_pause_s:
                pause_s = self._first_pause_s
            extra = {"task": name, "pause_s": pause_s}
            log.error("background task ended unexpectedly; restarting it", exc_info=error, extra=extra)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._max_pause_s)

    async def _run(self, name: str, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception:
            log.exception("background task failed", extra={"task": name})


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Awaits work that is not broken off if the caller is cancelled."""
    task = asyncio.create_task(work)
    _UNBROKEN.add(task)
    task.add_done_callback(_UNBROKEN.discard)
    await asyncio.shield(task)


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
