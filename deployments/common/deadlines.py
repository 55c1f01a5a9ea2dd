"""Timeouts for waits that are very frequent and mostly short."""

import asyncio
import math
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class Deadline:
    """Ends waits of one task that last too long, like asyncio.timeout, but with one timer for all of them.

    asyncio.timeout sets a timer for each wait. A token passes three waits on its way through the router, and their
    timers took a seventh of the router's time for it. Here a single timer checks now and then how long the current
    wait has lasted.
    """

    __slots__ = ("_expired", "_expires_at", "_loop", "_task", "_timer")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._expires_at = math.inf
        self._expired = False

    async def wait(self, awaitable: Awaitable[T], seconds: float) -> T:
        """Awaits it and returns its result. Only the task that created this object may call it.

        Raises TimeoutError after `seconds`.
        """
        self._expires_at = self._loop.time() + seconds
        if self._expires_at < math.inf and (self._timer is None or self._timer.when() > self._expires_at):
            self._set_timer(self._expires_at)
        try:
            return await awaitable
        except asyncio.CancelledError:
            # If somebody else cancelled the task as well, that cancellation wins.
            if self._expired and self._task is not None and not self._task.uncancel():
                raise TimeoutError from None
            raise
        finally:
            self._expires_at, self._expired = math.inf, False

    def close(self) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self, when: float) -> None:
        self.close()
        self._timer = self._loop.call_at(when, self._check)

    def _check(self) -> None:
        self._timer = None
        if self._loop.time() >= self._expires_at:
            assert self._task is not None
            self._expired = True
            self._task.cancel()
        elif self._expires_at < math.inf:
            self._set_timer(self._expires_at)
