"""Routers report in Redis that they are alive and what their teams ask for, and read what the others reported."""

import asyncio
import math
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from deployments.common.redis import RedisStore, RedisUnavailable

_KEY = "dray:routers"
_REPORTS = "{dray:routers}:demand"
"""In the same slot of a Redis Cluster."""
_INTERVAL_S = 5.0
_EXPIRES_S = 15
MIN_INTERVAL_S = 0.25
"""How often a router with requests reports."""
_REPORTS_PER_S = 80
"""Reports of all routers together, at most: each reads those of all others."""
_FRESH_S, _FRESH_INTERVALS = 2.0, 4
"""A report with requests that is older than this is that of a router that died or hangs."""
_REPORT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[4])
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])) do
  redis.call('ZREM', KEYS[1], gone)
  redis.call('HDEL', KEYS[2], gone)
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
local fresh = redis.call('ZRANGEBYSCORE', KEYS[1], now - ARGV[3], '+inf')
return {tonumber(time[1]), redis.call('ZCARD', KEYS[1]), fresh, redis.call('HMGET', KEYS[2], unpack(fresh))}
"""


@dataclass(frozen=True, slots=True)
class RouterReports:
    """What all routers reported. own: this router's name. routers: how many are alive. second: of Redis' clock.
    reports: by router; of those with requests, its own included."""

    own: str
    routers: int
    second: int
    reports: Mapping[str, bytes]


class Heartbeat:
    """Reports one router."""

    def __init__(
        self, store: RedisStore, report: Callable[[], bytes], on_reports: Callable[[RouterReports | None], None]
    ) -> None:
        """report: gives what to report; empty while the router has no requests. on_reports: called after each time,
        with None while Redis is away."""
        self._store, self._report, self._on_reports = store, report, on_reports
        self._script = store.script(_REPORT)
        self._name = secrets.token_hex(8)
        self.interval_s = MIN_INTERVAL_S
        """Seconds between two reports while the router has requests."""

    async def run(self) -> None:
        """Reports until cancelled: several times a second while the router has requests, else every few seconds."""
        try:
            while True:
                reported = await self.send()
                for _ in range(math.ceil(_INTERVAL_S / self.interval_s)):
                    await asyncio.sleep(self.interval_s)
                    if reported or self._report():
                        break
        finally:
            with suppress(RedisUnavailable):
                await self._store.execute("ZREM", _KEY, self._name)
                await self._store.execute("HDEL", _REPORTS, self._name)

    async def send(self) -> bool:
        """Reports once. Returns whether there were requests to report."""
        own, fresh_s = self._report(), max(_FRESH_S, _FRESH_INTERVALS * self.interval_s)
        try:
            reply = await self._script([_KEY, _REPORTS], self._name, _EXPIRES_S, fresh_s, own)
        except RedisUnavailable:
            self._on_reports(None)
            return bool(own)
        second, routers, names, reports = reply
        self.interval_s = max(MIN_INTERVAL_S, routers / _REPORTS_PER_S)
        known = {name.decode(): report for name, report in zip(names, reports, strict=True) if report}
        self._on_reports(RouterReports(self._name, routers, second, known))
        return bool(own)
