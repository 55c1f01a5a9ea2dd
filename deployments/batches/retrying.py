"""Tries again what Redis or the store of objects cannot do at the moment."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from deployments.common.redis import RedisUnavailable

T = TypeVar("T")

log = logging.getLogger("dray.batches")


async def until_answered(call: Callable[[], Awaitable[T]], pause_s: float, end: float) -> T:
    """What the call returns once it succeeds: the work is done, and would have to be done again by whoever takes the
    task next. pause_s: between two attempts. end: Unix time of the last one.

    Raises what the last attempt does: RedisUnavailable, OSError; and at once what is neither.
    """
    while True:
        try:
            return await call()
        except RedisUnavailable:  # its store logs that
            if time.time() > end:
                raise
        except OSError as error:
            if time.time() > end:
                raise
            log.warning("answers of a batch cannot be written; trying again", extra={"error": str(error)})
        await asyncio.sleep(pause_s)
