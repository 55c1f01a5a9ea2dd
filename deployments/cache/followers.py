"""The routers that follow one flight, as its leader knows them."""

import asyncio
from contextlib import suppress

from deployments.cache.presence import Wish
from deployments.routing.queue_class import QueueClass

_WISH_S = 3.0
"""So long a wish counts. It is repeated several times within it, by a busy router too."""


class Followers:
    """The routers that have asked for a flight's tokens lately."""

    def __init__(self) -> None:
        self._wishes: dict[str, tuple[QueueClass, float]] = {}
        """By router: the class that it asks for, and until when that counts."""
        self._arrived = asyncio.Event()

    def __bool__(self) -> bool:
        now = asyncio.get_running_loop().time()
        for router in [router for router, (_, until) in self._wishes.items() if until < now]:
            del self._wishes[router]
        return bool(self._wishes)

    def receive(self, wish: Wish) -> None:
        """A router wants the tokens, or no longer wants them."""
        if wish.queue_class is None:
            self._wishes.pop(wish.router, None)
            return
        if wish.router not in self._wishes:
            self._arrived.set()
        self._wishes[wish.router] = (wish.queue_class, asyncio.get_running_loop().time() + _WISH_S)

    @property
    def queue_classes(self) -> list[QueueClass]:
        """The most urgent one of each router's clients."""
        return [queue_class for queue_class, _ in self._wishes.values()]

    async def wait(self, seconds: float) -> None:
        """Waits, though not longer than until another router asks for the tokens."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._arrived.wait()
        self._arrived.clear()
