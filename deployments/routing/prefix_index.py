"""Where the beginning of a prompt is in a KV cache, as routers tell each other in Redis: so a conversation goes back to
it, whichever router its next turn comes to.

Whoever had a prompt computed notes the replica under the prompt's last whole blocks, which the next turn begins with.
While Redis is away a router knows only what it sent itself.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from deployments.common.prefix import BLOCK_TOKENS
from deployments.common.redis import RedisStore, RedisUnavailable

_KEPT_S = 600
_BLOCKS = 2
"""Noted of a prompt. The last one may hold the few tokens that open the assistant's turn, and the next turn others."""


class PrefixIndex:
    """For the engines of one application."""

    def __init__(self, store: RedisStore, application: str) -> None:
        self._store = store
        self._prefix = f"dray:kv:{{{application}}}:"
        self._tasks: set[asyncio.Task[None]] = set()

    async def lookup(self, blocks: Sequence[bytes]) -> tuple[str, int]:
        """The replica that computed most of a prompt's beginning, and how many tokens; none: "", 0. blocks: the keys of
        the prompt without its last token, which is always computed."""
        keys = self._keys(blocks)
        with suppress(RedisUnavailable):
            replicas: list[bytes | None] = await self._store.execute("MGET", *keys) if keys else []
            for place in range(len(replicas), 0, -1):
                if (replica := replicas[place - 1]) is not None:
                    return replica.decode(), place * BLOCK_TOKENS
        return "", 0

    def record(self, blocks: Sequence[bytes], replica: str) -> None:
        """Tells the others, meanwhile, that the replica has computed the prompt of these blocks."""
        if keys := self._keys(blocks[-_BLOCKS:]):
            task = asyncio.create_task(self._note(keys, replica))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _note(self, keys: Sequence[str], replica: str) -> None:
        def fill(pipe: Any) -> None:
            for key in keys:
                pipe.set(key, replica, ex=_KEPT_S)

        with suppress(RedisUnavailable):
            await self._store.transaction(fill)

    def _keys(self, blocks: Sequence[bytes]) -> list[str]:
        return [self._prefix + key.hex() for key in blocks]
