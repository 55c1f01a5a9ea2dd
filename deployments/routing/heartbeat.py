"""Routers report in Redis that they are alive and what their teams ask for, and read what the others reported.

Several Ray clusters may use one Redis: two zones, or the old and the new cluster of an upgrade. Teams' quotas hold for
all of their routers together, but engines are shared only by the routers of one cluster.
"""

import asyncio
import math
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from deployments.common.redis import RedisStore, RedisUnavailable

_ALL = "dray:routers"
"""The routers of all clusters."""
_OF_CLUSTER = "{dray:routers}"
"""What the keys of one cluster begin with: in the same slot of a Redis Cluster."""
_INTERVAL_S = 5.0
_EXPIRES_S = 15
MIN_INTERVAL_S = 0.25
"""How often a router with requests reports."""
_REPORTS_PER_S = 80
"""Reports of all routers together, at most: each reads those of all others in its cluster."""
_FRESH_S, _FRESH_INTERVALS = 2.0, 4
"""A report with requests that is older than this is that of a router that died or hangs."""
# KEYS: the routers of all clusters, those of this one, their reports. ARGV: name, seconds until a router counts as
# gone, seconds until its report is too old, report.
_REPORT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for index = 1, 2 do
  redis.call('ZADD', KEYS[index], now, ARGV[1])
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[index], '-inf', now - ARGV[2])) do
    redis.call('ZREM', KEYS[index], gone)
    redis.call('HDEL', KEYS[3], gone)
  end
end
redis.call('HSET', KEYS[3], ARGV[1], ARGV[4])
for index = 1, 3 do redis.call('EXPIRE', KEYS[index], ARGV[2]) end
local fresh = redis.call('ZRANGEBYSCORE', KEYS[2], now - ARGV[3], '+inf')
local counts = {redis.call('ZCARD', KEYS[2]), redis.call('ZCARD', KEYS[1])}
return {tonumber(time[1]), counts, fresh, redis.call('HMGET', KEYS[3], unpack(fresh))}
"""


@dataclass(frozen=True, slots=True)
class RouterReports:
    """What the routers of this cluster reported. own: this router's name. routers: how many are alive. second: of
    Redis' clock. reports: by router; of those with requests, its own included. everywhere: how many are alive in all
    clusters that use this Redis."""

    own: str
    routers: int
    second: int
    reports: Mapping[str, bytes]
    everywhere: int


class Heartbeat:
    """Reports one router."""

    def __init__(
        self,
        store: RedisStore,
        cluster: str,
        report: Callable[[], bytes],
        on_reports: Callable[[RouterReports | None], None],
    ) -> None:
        """cluster: the routers that share the engines; a name. report: gives what to report; empty while the router has
        no requests. on_reports: called after each time, with None while Redis is away."""
        self._store, self._report, self._on_reports = store, report, on_reports
        self._keys = [_ALL, f"{_OF_CLUSTER}:alive:{cluster}", f"{_OF_CLUSTER}:demand:{cluster}"]
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
                for command, key in zip(("ZREM", "ZREM", "HDEL"), self._keys, strict=True):
                    await self._store.execute(command, key, self._name)

    async def send(self) -> bool:
        """Reports once. Returns whether there were requests to report."""
        own, fresh_s = self._report(), max(_FRESH_S, _FRESH_INTERVALS * self.interval_s)
        try:
            reply = await self._script(self._keys, self._name, _EXPIRES_S, fresh_s, own)
        except RedisUnavailable:
            self._on_reports(None)
            return bool(own)
        second, (routers, everywhere), names, reports = reply
        self.interval_s = max(MIN_INTERVAL_S, everywhere / _REPORTS_PER_S)
        known = {name.decode(): report for name, report in zip(names, reports, strict=True) if report}
        self._on_reports(RouterReports(self._name, routers, second, known, everywhere))
        return bool(own)
