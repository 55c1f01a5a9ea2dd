"""The quota counters in Redis, shared by all routers. Each operation is one Lua script, so limits are exact.

Of each team, under keys on one node of a cluster: requests and tokens of the last 60 seconds (hashes by second), the
requests that run (a sorted set by the end of their lease), and the tokens of the month (UTC).
"""

import time
from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from cluster.records.team_records import Team
from deployments.common.redis import RedisStore

WINDOW_S = 60
LEASE_S = 15
"""A request counts as running for this long unless its router renews it."""
_MONTH_TTL_S = 70 * 86_400

Limit: TypeAlias = Literal["", "requests", "tokens", "running", "month"]
"""The limit that refuses a request; empty: none."""


class AdmitReply(NamedTuple):
    """Whether a request may start. requests, tokens: counted in the window, with the seconds until it is empty.
    wait_s: until a retry may succeed. month: tokens counted in the month."""

    refused_by: Limit
    wait_s: int
    requests: int
    requests_reset_s: int
    tokens: int
    tokens_reset_s: int
    month: int


class ReserveReply(NamedTuple):
    """Whether tokens may be reserved. second: under which they were counted, by Redis' clock; None: not in Redis."""

    refused_by: Limit
    wait_s: int
    tokens: int
    tokens_reset_s: int
    month: int
    second: int | None


# window_use drops what is older than the window. It returns the sum, the seconds until `requested` more would fit under
# the limit, and the seconds until the window is empty.
_WINDOW_USE = f"""
local window = {WINDOW_S}
local now = tonumber(redis.call('TIME')[1])
local function window_use(key, limit, requested)
  local fields, seconds, total = redis.call('HGETALL', key), {{}}, 0
  for i = 1, #fields, 2 do
    local second, count = tonumber(fields[i]), tonumber(fields[i + 1])
    if second <= now - window then
      redis.call('HDEL', key, fields[i])
    else
      total = total + count
      seconds[#seconds + 1] = {{second, count}}
    end
  end
  table.sort(seconds, function(a, b) return a[1] < b[1] end)
  local wait, left, reset = 0, total, 0
  for _, entry in ipairs(seconds) do
    reset = entry[1] + window - now
    if left + requested > limit then
      left = left - entry[2]
      wait = reset
    end
  end
  return total, wait, reset
end
"""
# KEYS of all scripts: requests, tokens, running, month. A limit of 0 is none.
_ADMIT = f"""
{_WINDOW_USE}
local max_requests, max_tokens = tonumber(ARGV[1]), tonumber(ARGV[2])
local max_running, max_month = tonumber(ARGV[3]), tonumber(ARGV[4])
local request_id, lease = ARGV[5], tonumber(ARGV[6])
local requests, wait, reset = window_use(KEYS[1], max_requests, 1)
local tokens, tokens_wait, tokens_reset = window_use(KEYS[2], max_tokens, 1)
local month = tonumber(redis.call('GET', KEYS[4]) or '0')
local refused = ''
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
if max_month > 0 and month >= max_month then refused = 'month'
elseif max_running > 0 and redis.call('ZCARD', KEYS[3]) >= max_running then refused = 'running' wait = 1
elseif max_requests > 0 and requests >= max_requests then refused = 'requests'
elseif max_tokens > 0 and tokens >= max_tokens then refused = 'tokens' wait = tokens_wait
else
  requests = requests + 1
  reset = window
  redis.call('HINCRBY', KEYS[1], now, 1)
  redis.call('EXPIRE', KEYS[1], window + 1)
  if max_running > 0 then
    redis.call('ZADD', KEYS[3], now + lease, request_id)
    redis.call('EXPIRE', KEYS[3], lease)
  end
end
return {{refused, wait, requests, reset, tokens, tokens_reset, month}}
"""
_RESERVE = f"""
{_WINDOW_USE}
local requested, max_tokens, max_month = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local owed, month_ttl = tonumber(ARGV[4]), ARGV[5]
local tokens, wait, reset = window_use(KEYS[2], max_tokens, requested)
local month = tonumber(redis.call('GET', KEYS[4]) or '0')
if max_month > 0 and month + requested > max_month then return {{'month', 0, tokens, reset, month, now}} end
if max_tokens > 0 and tokens + requested > max_tokens then return {{'tokens', wait, tokens, reset, month, now}} end
redis.call('HINCRBY', KEYS[2], now, requested)
redis.call('EXPIRE', KEYS[2], window + 1)
month = redis.call('INCRBY', KEYS[4], requested + owed)
redis.call('EXPIRE', KEYS[4], month_ttl)
return {{'', 0, tokens + requested, window, month, now}}
"""
_SETTLE = """
local second, difference = ARGV[1], ARGV[2]
if redis.call('HEXISTS', KEYS[2], second) == 1 then redis.call('HINCRBY', KEYS[2], second, difference) end
return redis.call('INCRBY', KEYS[4], difference)
"""
_RENEW = """
local now = tonumber(redis.call('TIME')[1])
local lease = tonumber(ARGV[1])
for i = 2, #ARGV do redis.call('ZADD', KEYS[3], 'XX', now + lease, ARGV[i]) end
return redis.call('EXPIRE', KEYS[3], lease)
"""


class QuotaCounters:
    """The counters of all teams. Every method raises RedisUnavailable."""

    def __init__(self, store: RedisStore, lease_s: int = LEASE_S) -> None:
        """lease_s: seconds after which a request that is not renewed no longer counts as running."""
        self._store = store
        self.lease_s = lease_s
        self._admit = store.script(_ADMIT)
        self._reserve = store.script(_RESERVE)
        self._settle = store.script(_SETTLE)
        self._renew = store.script(_RENEW)

    async def admit(self, team: Team, request_id: str) -> AdmitReply:
        """Counts a request and starts its lease, unless a limit refuses it."""
        keys, limits = quota_keys(team.name, current_month()), msgspec.structs.astuple(team.quota)
        refused_by, *numbers = await self._admit(keys, *limits, request_id, self.lease_s)
        return AdmitReply(refused_by.decode(), *numbers)

    async def reserve(self, team: Team, month: str, tokens: int, owed: int) -> ReserveReply:
        """Counts tokens, unless a limit refuses them. owed: tokens counted for the month while Redis was away."""
        limits = (team.quota.tokens_per_minute, team.quota.tokens_per_month)
        keys = quota_keys(team.name, month)
        refused_by, *numbers = await self._reserve(keys, tokens, *limits, owed, _MONTH_TTL_S)
        return ReserveReply(refused_by.decode(), *numbers)

    async def settle(self, team: Team, month: str, second: int, difference: int) -> None:
        """Adds the difference between used and reserved tokens, which were counted under this second."""
        await self._settle(quota_keys(team.name, month), second, difference)

    async def renew(self, team_name: str, request_ids: Iterable[str]) -> None:
        """Renews the leases of running requests."""
        await self._renew(quota_keys(team_name, ""), self.lease_s, *request_ids)

    async def release(self, team_name: str, request_id: str) -> None:
        """Ends the lease of a request."""
        await self._store.execute("ZREM", quota_keys(team_name, "")[2], request_id)


def current_month() -> str:
    """The present month: UTC."""
    return time.strftime("%Y-%m", time.gmtime())


def quota_keys(team: str, month: str) -> list[str]:
    """The keys of a team's counters: requests, tokens, running, month."""
    return [f"dray:quota:{{{team}}}:{counter}" for counter in ("requests", "tokens", "running", f"month:{month}")]
