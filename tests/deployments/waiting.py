"""Waits for a fact in tests of asynchronous code."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


async def until(fact: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Waits until the fact is true, and returns its value. fact: a function or a coroutine function. Raises
    TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while True:
            value = fact()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.01)
