"""How many routers there are, where they come and go with the load: each says in Redis that it is there."""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress

from deployments.common.redis import RedisStore, RedisUnavailable

_KEY = "dray:routers"
_SAY_S = 5.0
_FORGOTTEN_S = 15
_COUNT = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
"""


async def heartbeat(store: RedisStore, told: Callable[[int], None]) -> None:
    """Says that this router is there and tells how many are, every few seconds until cancelled; not while Redis is
    away."""
    name, count = secrets.token_hex(8), store.script(_COUNT)
    try:
        while True:
            with suppress(RedisUnavailable):
                told(int(await count([_KEY], name, _FORGOTTEN_S)))
            await asyncio.sleep(_SAY_S)
    finally:
        with suppress(RedisUnavailable):
            await store.execute("ZREM", _KEY, name)
