"""How many routers there are, while their number follows the load: each reports in Redis that it is alive."""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress

from deployments.common.redis import RedisStore, RedisUnavailable

_KEY = "dray:routers"
_INTERVAL_S = 5.0
_EXPIRES_S = 15
_REPORT = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
"""


async def heartbeat(store: RedisStore, on_count: Callable[[int], None]) -> None:
    """Reports this router every few seconds until cancelled, and passes the number of routers alive to `on_count`.

    While Redis is away it does neither.
    """
    name, report = secrets.token_hex(8), store.script(_REPORT)
    try:
        while True:
            with suppress(RedisUnavailable):
                on_count(int(await report([_KEY], name, _EXPIRES_S)))
            await asyncio.sleep(_INTERVAL_S)
    finally:
        with suppress(RedisUnavailable):
            await store.execute("ZREM", _KEY, name)
