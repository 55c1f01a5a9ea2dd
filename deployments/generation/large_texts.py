"""Handles large texts a few at a time, in threads of their own, and lets the teams that send them take turns."""

import asyncio
import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from deployments.common.text_encoder import LARGE_CHARACTERS
from deployments.routing.fair_queue import FairQueue
from deployments.routing.queue_class import QueueClass, TokenCost

T = TypeVar("T")

_AT_ONCE = 2
_MAX_WAITING = 32


class LargeTexts:
    """One router's large texts: parsing, rendering and tokenizing one takes up to seconds and hundreds of megabytes."""

    def __init__(self, at_once: int = _AT_ONCE, max_waiting: int = _MAX_WAITING) -> None:
        self._queue = FairQueue(at_once, max_waiting, sys.maxsize)
        # Few threads of its own: each thread that ever handled a large text keeps memory for the next one.
        self._threads = ThreadPoolExecutor(at_once, "large-text")

    async def run(self, queue_class: QueueClass, characters: int, work: Callable[[], T]) -> T:
        """The result of `work`, which handles a text of this length: at once if it is short, else in a thread when it
        is its team's turn. Raises ApiError 503 when too many large texts wait.
        """
        if characters <= LARGE_CHARACTERS:
            return work()
        cost = TokenCost(characters, 0, queue_class.batch)
        slot = await self._queue.acquire(queue_class.team, queue_class.weight, cost)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, _run_and_trim, work)
        finally:
            slot.release(characters)

    def close(self) -> None:
        """Ends the threads, once they have finished what they do."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _run_and_trim(work: Callable[[], T]) -> T:
    """The result of the work, whose memory goes back to the system: glibc would keep hundreds of megabytes for ever."""
    try:
        return work()
    finally:
        if _malloc_trim is not None:
            _malloc_trim(0)


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""glibc's; other C libraries have none."""
