"""Work that anybody may ask for, without a key, and that is done at most once a second."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_INTERVAL_S = 1.0


class Shared(Generic[T]):
    """A value that may be a second old: nobody waits for a younger one."""

    def __init__(self, make: Callable[[], Awaitable[T]], clock: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._clock = clock
        self._making: asyncio.Task[T] | None = None
        self._made_at = -math.inf

    async def value(self) -> T:
        """The value, no older than a second. Raises what making it raises."""
        made = self._making
        if made is None or (made.done() and (self._clock() - self._made_at >= _INTERVAL_S or made.exception())):
            made = self._making = asyncio.create_task(self._timed())
        # Shielded: others wait for it too.
        return await asyncio.shield(made)

    async def _timed(self) -> T:
        value = await self._make()
        self._made_at = self._clock()
        return value


class Paced(Generic[T]):
    """A value that is always made after it was asked for: who asks too soon waits, with all others who do."""

    def __init__(self, make: Callable[[], Awaitable[T]], interval_s: float = _INTERVAL_S) -> None:
        self._make = make
        self._interval_s = interval_s
        self._next: asyncio.Task[T] | None = None
        self._began_at = -math.inf

    async def value(self) -> T:
        """The value. Raises what making it raises."""
        if self._next is None:
            self._next = asyncio.create_task(self._after_interval())
        # Shielded: others wait for it too.
        return await asyncio.shield(self._next)

    async def _after_interval(self) -> T:
        await asyncio.sleep(self._began_at + self._interval_s - time.monotonic())
        # Whoever asks from now on may want to see what happens from now on.
        self._next, self._began_at = None, time.monotonic()
        return await self._make()
