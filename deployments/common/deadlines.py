"""Bounds for waits that are very many and mostly short."""

import asyncio
import math
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class Deadline:
    """Ends waits of one task that last too long, as asyncio.timeout does.

    That one sets a timer for each wait: three on a token's way through the router, a seventh of what the way costs.
    Here one timer looks, now and then, how long the present wait has lasted.
    """

    __slots__ = ("_ended", "_loop", "_task", "_timer", "_until")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._until = math.inf
        self._ended = False

    async def wait(self, what: Awaitable[T], seconds: float) -> T:
        """What the awaitable gives. Raises TimeoutError after so many seconds. For the task alone that made this."""
        self._until = self._loop.time() + seconds
        if self._until < math.inf and (self._timer is None or self._timer.when() > self._until):
            self._look_at(self._until)
        try:
            return await what
        except asyncio.CancelledError:
            # Where somebody else has cancelled the task too, that counts.
            if self._ended and self._task is not None and not self._task.uncancel():
                raise TimeoutError from None
            raise
        finally:
            self._until, self._ended = math.inf, False

    def close(self) -> None:
        """It looks no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look_at(self, when: float) -> None:
        self.close()
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._loop.time() >= self._until:
            assert self._task is not None
            self._ended = True
            self._task.cancel()
        elif self._until < math.inf:
            self._look_at(self._until)
