"""What a team may use, counted in Redis for all routers together, in one step each: requests and tokens of the last 60
seconds, requests at a time, tokens of the month (UTC).

Tokens are reserved before they are made, by what was asked for at most, and settled afterwards by what was made. While
Redis is away each router lets its share of every limit through, by what it has itself counted.
"""

import asyncio
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cluster.records.teams import Quota, Team
from deployments.common.errors import ApiError
from deployments.common.redis import RedisStore, RedisUnavailable

WINDOW_S = 60
_LEASE_S = 15
"""A request at a time counts for so long without a word of its router."""
_MONTH_KEPT_S = 70 * 86_400

_COMMON = (
    f"""
local window = {WINDOW_S}
"""
    + """
local time = redis.call('TIME')
local now = tonumber(time[1])
local function look(key, limit, wish)
  local all, seconds, total = redis.call('HGETALL', key), {}, 0
  for i = 1, #all, 2 do
    local second = tonumber(all[i])
    if second <= now - window then
      redis.call('HDEL', key, all[i])
    else
      total = total + tonumber(all[i + 1])
      seconds[#seconds + 1] = {second, tonumber(all[i + 1])}
    end
  end
  table.sort(seconds, function(a, b) return a[1] < b[1] end)
  local wait, left, reset = 0, total, 0
  for _, one in ipairs(seconds) do
    reset = one[1] + window - now
    if left + wish > limit then
      left = left - one[2]
      wait = reset
    end
  end
  return total, wait, reset
end
"""
)
# KEYS of all: requests, tokens, running, month. A limit of 0 is none.
_ADMIT = (
    _COMMON
    + """
local most_requests, most_tokens = tonumber(ARGV[1]), tonumber(ARGV[2])
local most_running, most_month = tonumber(ARGV[3]), tonumber(ARGV[4])
local requests, wait, reset = look(KEYS[1], most_requests, 1)
local tokens, tokens_wait, tokens_reset = look(KEYS[2], most_tokens, 1)
local month = tonumber(redis.call('GET', KEYS[4]) or '0')
local why = ''
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
if most_month > 0 and month >= most_month then why = 'month'
elseif most_running > 0 and redis.call('ZCARD', KEYS[3]) >= most_running then why = 'running' wait = 1
elseif most_requests > 0 and requests >= most_requests then why = 'requests'
elseif most_tokens > 0 and tokens >= most_tokens then why = 'tokens' wait = tokens_wait
else
  requests = requests + 1
  reset = window
  redis.call('HINCRBY', KEYS[1], now, 1)
  redis.call('EXPIRE', KEYS[1], window + 1)
  if most_running > 0 then
    redis.call('ZADD', KEYS[3], now + tonumber(ARGV[6]), ARGV[5])
    redis.call('EXPIRE', KEYS[3], ARGV[6])
  end
end
return {why, wait, requests, reset, tokens, tokens_reset, month}
"""
)
_RESERVE = (
    _COMMON
    + """
local wish, most_tokens, most_month = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local tokens, wait, reset = look(KEYS[2], most_tokens, wish)
local month = tonumber(redis.call('GET', KEYS[4]) or '0')
if most_month > 0 and month + wish > most_month then return {'month', 0, tokens, reset, month, now} end
if most_tokens > 0 and tokens + wish > most_tokens then return {'tokens', wait, tokens, reset, month, now} end
redis.call('HINCRBY', KEYS[2], now, wish)
redis.call('EXPIRE', KEYS[2], window + 1)
month = redis.call('INCRBY', KEYS[4], wish + tonumber(ARGV[4]))
redis.call('EXPIRE', KEYS[4], ARGV[5])
return {'', 0, tokens + wish, window, month, now}
"""
)
_SETTLE = """
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then redis.call('HINCRBY', KEYS[2], ARGV[1], ARGV[2]) end
return redis.call('INCRBY', KEYS[4], ARGV[2])
"""
_RENEW = """
local now = tonumber(redis.call('TIME')[1])
for i = 2, #ARGV do redis.call('ZADD', KEYS[3], 'XX', now + tonumber(ARGV[1]), ARGV[i]) end
return redis.call('EXPIRE', KEYS[3], ARGV[1])
"""
_WHY = {
    "requests": ("requests", "rate_limit_exceeded", "{requests_per_minute} requests a minute"),
    "tokens": ("tokens", "rate_limit_exceeded", "{tokens_per_minute} tokens a minute"),
    "running": ("requests", "rate_limit_exceeded", "{requests_at_a_time} requests at a time"),
    "month": ("insufficient_quota", "insufficient_quota", "{tokens_per_month} tokens a month"),
}


class SlidingWindow:
    """Amounts of the last 60 seconds, to the second: what Redis counts for all, counted for one router."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds: deque[list[int]] = deque()

    def used(self) -> int:
        """What was added in the window."""
        oldest = int(self._clock()) - WINDOW_S
        while self._seconds and self._seconds[0][0] <= oldest:
            self._seconds.popleft()
        return sum(amount for _, amount in self._seconds)

    def add(self, amount: int) -> None:
        """Adds to this second."""
        now = int(self._clock())
        if self._seconds and self._seconds[-1][0] == now:
            self._seconds[-1][1] += amount
        else:
            self._seconds.append([now, amount])

    def wait_s(self, limit: int, wish: int) -> int:
        """Seconds until so much would fit."""
        left, wait = self.used(), 0
        for second, amount in self._seconds:
            if left + wish <= limit:
                break
            left -= amount
            wait = second + WINDOW_S - int(self._clock())
        return max(1, wait)


@dataclass(slots=True)
class _LocalCounts:
    """What this router has counted of one team. owed: of the month, not told to Redis yet."""

    requests: SlidingWindow
    tokens: SlidingWindow
    running: set[str] = field(default_factory=set)
    month: int = 0
    owed: int = 0


class QuotaGrant:
    """A request that was let in. `headers` tell its client what is left; it must be ended."""

    def __init__(self, quotas: "Quotas", team: Team | None, number: str, headers: dict[str, str]) -> None:
        """team: None for who has no bounds."""
        self.headers = headers
        self._quotas, self._team, self._number = quotas, team, number
        self._reserved = 0
        self._bucket: int | None = None
        self._month = ""

    @property
    def is_limited(self) -> bool:
        """Whether it has an end that somebody must hear of."""
        return self._team is not None

    async def reserve(self, tokens: int) -> None:
        """Sets tokens apart for it before they are made. Raises ApiError 429."""
        if self._team is not None and (self._team.quota.tokens_per_minute or self._team.quota.tokens_per_month):
            self._month = current_month()
            # What is more than the limit would never be let in; it is what the limit says.
            wish = min(tokens, self._team.quota.tokens_per_minute or tokens)
            self._bucket = await self._quotas._reserve(self._team, wish, self._month, self.headers)
            self._reserved = wish

    async def settle(self, tokens: int) -> None:
        """Counts what it has used in truth in place of what was reserved."""
        if self._team is not None and self._reserved:
            await self._quotas._settle(self._team, tokens - self._reserved, self._bucket, self._month)
            self._reserved = 0

    async def release(self) -> None:
        """It runs no more."""
        if self._team is not None:
            await self._quotas._end(self._team, self._number)


class Quotas:
    """Lets requests in, for one router."""

    def __init__(self, store: RedisStore, routers: int, clock: Callable[[], float] = time.time) -> None:
        """routers: how many there are, which share each limit while Redis is away."""
        self._store = store
        self.routers = max(1, routers)
        self._admit_script = store.script(_ADMIT)
        self._reserve_script = store.script(_RESERVE)
        self._settle_script = store.script(_SETTLE)
        self._renew_script = store.script(_RENEW)
        self._own: defaultdict[str, _LocalCounts] = defaultdict(
            lambda: _LocalCounts(SlidingWindow(clock), SlidingWindow(clock))
        )

    async def admit(self, team: Team | None) -> QuotaGrant:
        """Lets a request in. Raises ApiError 429, and nothing is spent."""
        if team is None or not team.quota.bounded:
            return QuotaGrant(self, None, "", {})
        quota, own, number = team.quota, self._own[team.name], secrets.token_hex(8)
        try:
            why, wait, requests, reset, tokens, tokens_reset, month = await self._admit_script(
                quota_keys(team.name, current_month()), *msgspec.structs.astuple(quota), number, _LEASE_S
            )
            own.month = month + own.owed
            if why:
                raise quota_exceeded(why.decode(), quota, wait)
        except RedisUnavailable:
            requests, reset, tokens, tokens_reset = self._admit_alone(quota, own)
        own.requests.add(1)
        own.running.add(number)
        headers: dict[str, str] = {}
        _tell(headers, "requests", quota.requests_per_minute, requests, reset)
        _tell(headers, "tokens", quota.tokens_per_minute, tokens, tokens_reset)
        return QuotaGrant(self, team, number, headers)

    async def renew_forever(self) -> None:
        """Says every few seconds which requests still run, until cancelled; without that they count no more."""
        while True:
            await asyncio.sleep(_LEASE_S / 3)
            for name, own in tuple(self._own.items()):
                if own.running:
                    with suppress(RedisUnavailable):
                        await self._renew_script(quota_keys(name, current_month()), _LEASE_S, *own.running)

    def _admit_alone(self, quota: Quota, own: _LocalCounts) -> tuple[int, int, int, int]:
        requests, tokens = own.requests.used(), own.tokens.used()
        if quota.tokens_per_month and own.month >= quota.tokens_per_month:
            raise quota_exceeded("month", quota, 0)
        if quota.requests_at_a_time and len(own.running) >= self._share(quota.requests_at_a_time):
            raise quota_exceeded("running", quota, 1)
        if quota.requests_per_minute and requests >= (most := self._share(quota.requests_per_minute)):
            raise quota_exceeded("requests", quota, own.requests.wait_s(most, 1))
        if quota.tokens_per_minute and tokens >= (most := self._share(quota.tokens_per_minute)):
            raise quota_exceeded("tokens", quota, own.tokens.wait_s(most, 1))
        return requests + 1, WINDOW_S, tokens, WINDOW_S

    async def _reserve(self, team: Team, wish: int, month: str, headers: dict[str, str]) -> int | None:
        quota, own = team.quota, self._own[team.name]
        limits = (quota.tokens_per_minute, quota.tokens_per_month)
        try:
            owed = own.owed
            why, wait, tokens, reset, used, second = await self._reserve_script(
                quota_keys(team.name, month), wish, *limits, owed, _MONTH_KEPT_S
            )
            if why:
                raise quota_exceeded(why.decode(), quota, wait)
            own.owed -= owed
            own.month = used
            bucket: int | None = second
        except RedisUnavailable:
            tokens, reset, bucket = own.tokens.used() + wish, WINDOW_S, None
            if quota.tokens_per_month and own.month + wish > quota.tokens_per_month:
                raise quota_exceeded("month", quota, 0) from None
            if quota.tokens_per_minute and tokens > (most := self._share(quota.tokens_per_minute)):
                raise quota_exceeded("tokens", quota, own.tokens.wait_s(most, wish)) from None
            own.owed += wish
            own.month += wish
        own.tokens.add(wish)
        _tell(headers, "tokens", quota.tokens_per_minute, tokens, reset)
        return bucket

    async def _settle(self, team: Team, difference: int, bucket: int | None, month: str) -> None:
        own = self._own[team.name]
        own.tokens.add(difference)
        own.month += difference
        if bucket is None:
            own.owed += difference
            return
        try:
            await self._settle_script(quota_keys(team.name, month), bucket, difference)
        except RedisUnavailable:
            own.owed += difference

    async def _end(self, team: Team, number: str) -> None:
        own = self._own[team.name]
        own.running.discard(number)
        if not team.quota.requests_at_a_time:
            return
        try:
            await self._store.execute("ZREM", quota_keys(team.name, "")[2], number)
        except RedisUnavailable:
            return  # it counts for some seconds more

    def _share(self, limit: int) -> int:
        return max(1, limit // self.routers)


def current_month() -> str:
    """The month that counts now: UTC."""
    return time.strftime("%Y-%m", time.gmtime())


def quota_keys(team: str, month: str) -> list[str]:
    """The keys of a team's counters, all on one node of a cluster."""
    return [f"dray:quota:{{{team}}}:{what}" for what in ("requests", "tokens", "running", f"month:{month}")]


def quota_exceeded(why: str, quota: Quota, wait_s: int) -> ApiError:
    """429 that says which limit was reached, and when to come again."""
    kind, code, text = _WHY[why]
    again = "It begins anew with the month." if why == "month" else f"Try again in {max(1, wait_s)} s."
    message = f"Your team's limit of {text.format(**msgspec.structs.asdict(quota))} is reached. {again}"
    return ApiError(429, message, code=code, kind=kind, retry_after_s=None if why == "month" else max(1, wait_s))


def _tell(headers: dict[str, Any], what: str, limit: int, used: int, reset_s: int) -> None:
    if limit:
        headers[f"x-ratelimit-limit-{what}"] = str(limit)
        headers[f"x-ratelimit-remaining-{what}"] = str(max(0, limit - used))
        headers[f"x-ratelimit-reset-{what}"] = f"{reset_s}s"
