"""The quota counters in Redis, shared by all routers. Each operation is one Lua script, so limits are exact.

Of each team, under keys on one node of a cluster: requests and tokens of the last 60 seconds (hashes by second), the
requests that run (a sorted set by the end of their lease), the tokens of the month (UTC), for teams with a budget what
these cost, in billionths of the currency, and what of both is reserved (a sorted set as that of the requests). What a
router has reserved that dies is given back when its lease has ended: nobody else can say what of it was used.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from cluster.records.team_records import Team
from deployments.common.redis import RedisStore

WINDOW_S = 60
LEASE_S = 15
"""A request counts as running for this long unless its router renews it."""
_MONTH_TTL_S = 70 * 86_400

Limit: TypeAlias = Literal["", "requests", "tokens", "running", "month", "cost"]
"""The limit that refuses a request; empty: none."""


class AdmitReply(NamedTuple):
    """Whether a request may start. requests, tokens: counted in the window, with the seconds until it is empty.
    wait_s: until a retry may succeed. month: tokens counted in the month. cost: of the month, if there is a budget."""

    refused_by: Limit
    wait_s: int
    requests: int
    requests_reset_s: int
    tokens: int
    tokens_reset_s: int
    month: int
    cost: int = 0


class ReserveReply(NamedTuple):
    """Whether tokens may be reserved. second: under which they were counted, by Redis' clock; None: not in Redis.

    refused_by: `unknown` where the cost of the month has to be set first."""

    refused_by: Limit | Literal["unknown"]
    wait_s: int
    tokens: int
    tokens_reset_s: int
    month: int
    second: int | None
    cost: int = 0


class Use(NamedTuple):
    """What a team has used in the month."""

    tokens: int
    cost: int


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
# KEYS of all scripts: requests, tokens, running, month, cost, reserved. A limit of 0 is none.
_GIVE_BACK = """
local function give_back(present)
  for _, lost in ipairs(redis.call('ZRANGEBYSCORE', KEYS[6], '-inf', now)) do
    local month, tokens, cost = string.match(lost, '^([^ ]+) (%d+) (%d+) ')
    if month == present then
      if redis.call('EXISTS', KEYS[4]) == 1 then redis.call('DECRBY', KEYS[4], tokens) end
      if redis.call('EXISTS', KEYS[5]) == 1 then redis.call('DECRBY', KEYS[5], cost) end
    end
    redis.call('ZREM', KEYS[6], lost)
  end
end
"""
# ARGV 8: the month.
_ADMIT = f"""
{_WINDOW_USE}{_GIVE_BACK}
local max_requests, max_tokens = tonumber(ARGV[1]), tonumber(ARGV[2])
local max_running, max_month = tonumber(ARGV[3]), tonumber(ARGV[4])
local request_id, lease, max_cost = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
if max_month > 0 or max_cost > 0 then give_back(ARGV[8]) end
local requests, wait, reset = window_use(KEYS[1], max_requests, 1)
local tokens, tokens_wait, tokens_reset = window_use(KEYS[2], max_tokens, 1)
local month = tonumber(redis.call('GET', KEYS[4]) or '0')
local cost = max_cost > 0 and tonumber(redis.call('GET', KEYS[5]) or '0') or 0
local refused = ''
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
if max_month > 0 and month >= max_month then refused = 'month'
elseif max_cost > 0 and cost >= max_cost then refused = 'cost'
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
return {{refused, wait, requests, reset, tokens, tokens_reset, month, cost}}
"""
# ARGV 9, 10, 11: the reservation, or empty, its lease, the month.
_RESERVE = f"""
{_WINDOW_USE}{_GIVE_BACK}
local requested, max_tokens, max_month = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local owed, month_ttl = tonumber(ARGV[4]), ARGV[5]
local max_cost, cost_requested, cost_added = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
if ARGV[9] ~= '' then give_back(ARGV[11]) end
local tokens, wait, reset = window_use(KEYS[2], max_tokens, requested)
local month = tonumber(redis.call('GET', KEYS[4]) or '0')
if max_month > 0 and month + requested > max_month then return {{'month', 0, tokens, reset, month, now}} end
if max_tokens > 0 and tokens + requested > max_tokens then return {{'tokens', wait, tokens, reset, month, now}} end
local cost = 0
if max_cost > 0 then
  local known = redis.call('GET', KEYS[5])
  if not known then return {{'unknown', 0, tokens, reset, month, now}} end
  if tonumber(known) + cost_requested > max_cost then return {{'cost', 0, tokens, reset, month, now}} end
  cost = redis.call('INCRBY', KEYS[5], cost_added)
end
redis.call('HINCRBY', KEYS[2], now, requested)
redis.call('EXPIRE', KEYS[2], window + 1)
month = redis.call('INCRBY', KEYS[4], requested + owed)
redis.call('EXPIRE', KEYS[4], month_ttl)
if ARGV[9] ~= '' then
  redis.call('ZADD', KEYS[6], now + ARGV[10], ARGV[9])
  redis.call('EXPIRE', KEYS[6], month_ttl)
end
return {{'', 0, tokens + requested, window, month, now, cost}}
"""
# ARGV 4: the reservation, or empty. 5, 6: what was used of tokens and money, where the reservation was given back.
_SETTLE = """
local second, difference, cost = ARGV[1], ARGV[2], ARGV[3]
if redis.call('HEXISTS', KEYS[2], second) == 1 then redis.call('HINCRBY', KEYS[2], second, difference) end
if ARGV[4] ~= '' and redis.call('ZREM', KEYS[6], ARGV[4]) == 0 then
  difference, cost = ARGV[5], cost ~= '' and ARGV[6] or ''
end
local month = redis.call('INCRBY', KEYS[4], difference)
return {month, cost ~= '' and redis.call('INCRBY', KEYS[5], cost) or 0}
"""
# ARGV: lease, number of requests, their ids, reservations.
_RENEW = """
local now = tonumber(redis.call('TIME')[1])
local lease, requests = tonumber(ARGV[1]), tonumber(ARGV[2])
for i = 3, #ARGV do redis.call('ZADD', KEYS[i <= requests + 2 and 3 or 6], 'XX', now + lease, ARGV[i]) end
return redis.call('EXPIRE', KEYS[3], lease)
"""


class Reservation(NamedTuple):
    """Tokens of a month that are reserved, and their cost.

    id: tells those of equal amounts apart; empty where the month has no limit, so that nothing needs to be given back.
    """

    month: str
    tokens: int
    cost: int
    id: str

    @property
    def encoded(self) -> str:
        """As the scripts have it; empty if it needs no lease."""
        return " ".join(map(str, self)) if self.id else ""


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

    async def admit(self, team: Team, request_id: str, max_cost: int = 0) -> AdmitReply:
        """Counts a request and starts its lease, unless a limit refuses it. max_cost: of the month; 0: not limited."""
        month = current_month()
        keys, limits = quota_keys(team.name, month), msgspec.structs.astuple(team.quota)
        refused_by, *numbers = await self._admit(keys, *limits, request_id, self.lease_s, max_cost, month)
        return AdmitReply(refused_by.decode(), *numbers)

    async def reserve(
        self, team: Team, reservation: Reservation, owed: int, owed_cost: int = 0, max_cost: int = 0
    ) -> ReserveReply:
        """Counts tokens and their cost and starts the lease of the reservation, unless a limit refuses them. owed,
        owed_cost: counted for the month while Redis was away."""
        limits = (team.quota.tokens_per_minute, team.quota.tokens_per_month)
        month, tokens, cost, _ = reservation
        costs = (max_cost, cost, cost + owed_cost)
        lease = (reservation.encoded, self.lease_s, month)
        keys = quota_keys(team.name, month)
        refused_by, *numbers = await self._reserve(keys, tokens, *limits, owed, _MONTH_TTL_S, *costs, *lease)
        return ReserveReply(refused_by.decode(), *numbers)

    async def settle(
        self, team: Team, reservation: Reservation, second: int, tokens: int, cost: int | None = None
    ) -> Use:
        """Counts what was used of a reservation, which was counted under this second. cost: None: it is not counted."""
        keys, difference = quota_keys(team.name, reservation.month), tokens - reservation.tokens
        costs = ("", "") if cost is None else (cost - reservation.cost, cost)
        return Use(*await self._settle(keys, second, difference, costs[0], reservation.encoded, tokens, costs[1]))

    async def set_cost(self, team_name: str, month: str, cost: int) -> None:
        """Sets the cost of the month, unless it is known."""
        await self._store.execute("SET", quota_keys(team_name, month)[4], cost, "NX", "EX", _MONTH_TTL_S)

    async def claim_warning(self, team_name: str, month: str) -> bool:
        """Whether nobody has claimed before to warn of this team's use in this month."""
        key = f"{quota_keys(team_name, month)[3]}:warned"
        return bool(await self._store.execute("SET", key, 1, "NX", "EX", _MONTH_TTL_S))

    async def renew(self, team_name: str, request_ids: Sequence[str], reservations: Iterable[str]) -> None:
        """Renews the leases of running requests, and of reservations."""
        await self._renew(quota_keys(team_name, ""), self.lease_s, len(request_ids), *request_ids, *reservations)

    async def release(self, team_name: str, request_id: str) -> None:
        """Ends the lease of a request."""
        await self._store.execute("ZREM", quota_keys(team_name, "")[2], request_id)


def current_month() -> str:
    """The present month: UTC."""
    return time.strftime("%Y-%m", time.gmtime())


def quota_keys(team: str, month: str) -> list[str]:
    """The keys of a team's counters: requests, tokens, running, month, cost, reserved."""
    counters = ("requests", "tokens", "running", f"month:{month}", f"cost:{month}", "reserved")
    return [f"dray:quota:{{{team}}}:{counter}" for counter in counters]
