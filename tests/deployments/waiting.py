"""Waits for a fact in tests of asynchronous code."""

import asyncio
from collections.abc import Awaitable, Callable


async def until(fact: Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> None:
    """Returns once the fact holds. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not await fact():
            await asyncio.sleep(0.01)
