"""What a team may use: requests and tokens of the last 60 seconds, requests at a time, tokens of the month (UTC).

Tokens are reserved before they are generated, as many as the request may take at most, and settled afterwards by what
it took. Redis counts for all routers together; while it is away each router enforces its share of every limit by what
it has counted itself.
"""

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

from msgspec.structs import replace

from cluster.records.team_records import Quota, Team
from cluster.units import plural
from deployments.common.errors import ApiError
from deployments.common.redis import RedisStore, RedisUnavailable
from deployments.tenancy.local_use import LocalUse
from deployments.tenancy.quota_counters import LEASE_S, Limit, QuotaCounters, current_month

_REFUSALS = {
    "requests": ("requests", "rate_limit_exceeded", "requests_per_minute", "request", "a minute"),
    "tokens": ("tokens", "rate_limit_exceeded", "tokens_per_minute", "token", "a minute"),
    "running": ("requests", "rate_limit_exceeded", "requests_at_a_time", "request", "at a time"),
    "month": ("insufficient_quota", "insufficient_quota", "tokens_per_month", "token", "a month"),
}
"""By limit: the error's type, its code, the quota's field, and its words."""


class QuotaGrant:
    """A request that was admitted; release it when it ends. `headers` report to its client what is left."""

    def __init__(self, quotas: "Quotas", team: Team | None, request_id: str, headers: dict[str, str]) -> None:
        """team: None where nothing is limited."""
        self.headers = headers
        self._quotas, self._team, self._request_id = quotas, team, request_id
        self._month = ""
        self._reserved = 0
        self._second: int | None = None

    @property
    def is_limited(self) -> bool:
        """Whether `release` has anything to do."""
        return self._team is not None

    async def reserve(self, tokens: int) -> None:
        """Reserves tokens before they are generated. Raises ApiError 429."""
        reservation = asyncio.create_task(self._reserve(tokens))
        try:
            await asyncio.shield(reservation)
        except asyncio.CancelledError:
            # Redis may count the tokens all the same, and a cancelled request settles nothing: give them back.
            with suppress(ApiError):
                await reservation
            await self.settle(0)
            raise

    async def _reserve(self, tokens: int) -> None:
        team = self._team
        if team is None or not (team.quota.tokens_per_minute or team.quota.tokens_per_month):
            return
        quota, local = team.quota, self._quotas.local[team.name]
        self._month = current_month()
        # A request for more than the limit would never be admitted: it takes the whole limit.
        tokens = min(tokens, quota.tokens_per_minute or tokens)
        owed = local.owed
        try:
            reply = await self._quotas.counters.reserve(team, self._month, tokens, owed)
        except RedisUnavailable:
            reply = local.reserve(quota, self._quotas.routers, tokens)
        if reply.refused_by:
            raise quota_exceeded(reply.refused_by, quota, reply.wait_s)
        if reply.second is not None:
            local.owed -= owed
        local.month = reply.month
        local.tokens.add(tokens)
        self._reserved, self._second = tokens, reply.second
        self.headers |= _limit_headers("tokens", quota.tokens_per_minute, reply.tokens, reply.tokens_reset_s)

    async def settle(self, tokens: int) -> None:
        """Counts the tokens that it has used in place of those reserved."""
        if self._team is None or not self._reserved:
            return
        local, difference = self._quotas.local[self._team.name], tokens - self._reserved
        self._reserved = 0
        local.tokens.add(difference)
        local.month += difference
        if self._second is None:
            local.owed += difference
            return
        try:
            await self._quotas.counters.settle(self._team, self._month, self._second, difference)
        except RedisUnavailable:
            local.owed += difference

    async def release(self) -> None:
        """The request has ended."""
        if self._team is None:
            return
        self._quotas.local[self._team.name].running.discard(self._request_id)
        if self._team.quota.requests_at_a_time:
            # While Redis is away, its lease ends by itself within seconds.
            with suppress(RedisUnavailable):
                await self._quotas.counters.release(self._team.name, self._request_id)


class Quotas:
    """Admits the requests of one router."""

    def __init__(
        self, store: RedisStore, routers: int, clock: Callable[[], float] = time.time, lease_s: int = LEASE_S
    ) -> None:
        """routers: how many share each limit while Redis is away. lease_s: as QuotaCounters takes it."""
        self.routers = max(1, routers)
        self.counters = QuotaCounters(store, lease_s)
        self.local: defaultdict[str, LocalUse] = defaultdict(lambda: LocalUse(clock))
        """What this router has counted, by team."""

    async def admit(self, team: Team | None, *, in_batch: bool = False) -> QuotaGrant:
        """Admits a request. Raises ApiError 429, and then nothing is counted.

        in_batch: only its tokens count, as each line of a batch would take a place from the team's people.
        """
        if team is not None and in_batch:
            team = replace(team, quota=replace(team.quota, requests_per_minute=0, requests_at_a_time=0))
        if team is None or not team.quota.bounded:
            return QuotaGrant(self, None, "", {})
        if in_batch:
            return QuotaGrant(self, team, "", {})
        quota, local, request_id = team.quota, self.local[team.name], secrets.token_hex(8)
        try:
            reply = await self.counters.admit(team, request_id)
            local.month = reply.month + local.owed
        except RedisUnavailable:
            reply = local.admit(quota, self.routers)
        if reply.refused_by:
            raise quota_exceeded(reply.refused_by, quota, reply.wait_s)
        local.requests.add(1)
        local.running.add(request_id)
        headers = _limit_headers("requests", quota.requests_per_minute, reply.requests, reply.requests_reset_s)
        headers |= _limit_headers("tokens", quota.tokens_per_minute, reply.tokens, reply.tokens_reset_s)
        return QuotaGrant(self, team, request_id, headers)

    async def renew_forever(self) -> None:
        """Renews the leases of running requests until cancelled; those of a dead router end by themselves."""
        while True:
            await asyncio.sleep(self.counters.lease_s / 3)
            for name, local in tuple(self.local.items()):
                if local.running:
                    with suppress(RedisUnavailable):
                        await self.counters.renew(name, tuple(local.running))


def quota_exceeded(limit: Limit, quota: Quota, wait_s: int) -> ApiError:
    """429 that names the limit and when to try again."""
    kind, code, field, noun, period = _REFUSALS[limit]
    message = f"Your team's limit of {plural(getattr(quota, field), noun)} {period} is reached. "
    if limit == "month":
        message += "The limit resets at the start of the month (UTC)."
        return ApiError(429, message, code=code, kind=kind)
    retry_after_s = max(1, wait_s)
    return ApiError(429, f"{message}Try again in {retry_after_s} s.", code=code, kind=kind, retry_after_s=retry_after_s)


def _limit_headers(what: str, limit: int, used: int, reset_s: int) -> dict[str, str]:
    if not limit:
        return {}
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(max(0, limit - used)),
        f"x-ratelimit-reset-{what}": f"{reset_s}s",
    }
