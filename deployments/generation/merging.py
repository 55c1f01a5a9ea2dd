"""Several streams of deltas as one."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from deployments.common.types import Delta


async def merge_streams(streams: Sequence[AsyncGenerator[Delta, None]]) -> AsyncGenerator[Delta, None]:
    """The deltas of all streams, as they arrive. If one stream fails, the others end."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as deltas:
            async for delta in deltas:
                yield delta
        return
    queue: asyncio.Queue[Delta | None] = asyncio.Queue()

    async def read(stream: AsyncGenerator[Delta, None]) -> None:
        async with aclosing(stream) as deltas:
            async for delta in deltas:
                queue.put_nowait(delta)

    async def read_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for stream in streams:
                    group.create_task(read(stream))
        finally:
            queue.put_nowait(None)

    reading = asyncio.create_task(read_all())
    try:
        while (received := await queue.get()) is not None:
            yield received
        try:
            await reading
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
    finally:
        reading.cancel()
