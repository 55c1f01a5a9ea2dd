"""Where the start of a prompt is in a KV cache, shared between routers in Redis: so a conversation returns to its
replica, whichever router gets its next turn.

The router that had a prompt computed records the replica under one of the prompt's last whole blocks, with which the
next turn begins. While Redis is away a router knows only the prompts that it sent itself.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from deployments.common.prefix import BLOCK_TOKENS
from deployments.common.redis import RedisStore, RedisUnavailable

_TTL_S = 600


@dataclass(frozen=True, slots=True)
class PrefixLocation:
    """The replica whose KV cache holds the first `tokens` tokens of a prompt; empty where none is known."""

    replica: str = ""
    tokens: int = 0


class PrefixIndex:
    """The replicas of one application's engines, by the prompts that they have computed."""

    def __init__(self, store: RedisStore, cluster: str, application: str) -> None:
        """cluster: the name of the Ray cluster that has the replicas. Another one that uses this Redis may have an
        application of the same name, whose replicas no router of this one can reach."""
        self._store = store
        self._key_prefix = f"dray:kv:{{{cluster}:{application}}}:"
        self._tasks: set[asyncio.Task[None]] = set()

    async def lookup(self, blocks: Sequence[bytes]) -> PrefixLocation:
        """Where the longest recorded start of a prompt is. blocks: the keys of the prompt without its last token, which
        is always computed."""
        keys = self._keys(blocks)
        with suppress(RedisUnavailable):
            replicas: list[bytes | None] = await self._store.execute("MGET", *keys) if keys else []
            for count in range(len(replicas), 0, -1):
                if (replica := replicas[count - 1]) is not None:
                    return PrefixLocation(replica.decode(), count * BLOCK_TOKENS)
        return PrefixLocation()

    def record(self, blocks: Sequence[bytes], replica: str) -> None:
        """Records, in a task, that the replica has computed the prompt of these blocks."""
        # The last block may contain the few tokens that open the assistant's turn, and the next turn continues
        # differently there. A second record would find one block more, for one more command.
        if recorded := blocks[-2:][:1]:
            task = asyncio.create_task(self._write(recorded[0], replica))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _write(self, block: bytes, replica: str) -> None:
        with suppress(RedisUnavailable):
            await self._store.execute("SET", *self._keys([block]), replica, "EX", _TTL_S)

    def _keys(self, blocks: Sequence[bytes]) -> list[str]:
        return [self._key_prefix + key.hex() for key in blocks]
