"""What a team may use: requests and tokens of the last 60 seconds, requests at a time, tokens and money of the month
(UTC).

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
from typing import cast

from msgspec.structs import replace

from cluster.records.team_records import Quota, Team
from cluster.units import plural
from deployments.common.errors import ApiError
from deployments.common.redis import RedisStore, RedisUnavailable
from deployments.tenancy.budgets import Budgets
from deployments.tenancy.local_use import LocalUse
from deployments.tenancy.quota_counters import (
    LEASE_S,
    Limit,
    QuotaCounters,
    Reservation,
    ReserveReply,
    Use,
    current_month,
)

_REFUSALS = {
    "requests": ("requests", "rate_limit_exceeded", "requests_per_minute", "request", "a minute"),
    "tokens": ("tokens", "rate_limit_exceeded", "tokens_per_minute", "token", "a minute"),
    "running": ("requests", "rate_limit_exceeded", "requests_at_a_time", "request", "at a time"),
    "month": ("insufficient_quota", "insufficient_quota", "tokens_per_month", "token", "a month"),
}
"""By limit: the error's type, its code, the quota's field, and its words."""
_NEXT_MONTH = "The limit resets at the start of the month (UTC)."


class QuotaGrant:
    """A request that was admitted; release it when it ends. `headers` report to its client what is left."""

    def __init__(
        self, quotas: "Quotas", team: Team | None, request_id: str, headers: dict[str, str], model: str = ""
    ) -> None:
        """team: None where nothing is limited. model: whose price its tokens have."""
        self.headers = headers
        self._quotas, self._team, self._request_id, self._model = quotas, team, request_id, model
        self._reservation: Reservation | None = None
        self._priced = False
        """Whether the team's cost is counted."""
        self._second: int | None = None

    @property
    def is_limited(self) -> bool:
        """Whether `release` has anything to do."""
        return self._team is not None

    async def reserve(self, prompt: int, completion: int = 0) -> None:
        """Reserves tokens before they are generated. Raises ApiError 429."""
        reservation = asyncio.create_task(self._reserve(prompt, completion))
        try:
            await asyncio.shield(reservation)
        except asyncio.CancelledError:
            # Redis may count the tokens all the same, and a cancelled request settles nothing: give them back.
            with suppress(ApiError):
                await reservation
            await self.settle(0)
            raise

    async def _reserve(self, prompt: int, completion: int) -> None:
        team = self._team
        if team is None:
            return
        quota, local, max_cost = team.quota, self._quotas.local[team.name], self._quotas.max_cost(team, self._model)
        if not (quota.tokens_per_minute or quota.tokens_per_month or max_cost):
            return
        tokens = prompt + completion
        # A request for more than the limit would never be admitted: it takes the whole limit.
        tokens = min(tokens, quota.tokens_per_minute or tokens)
        cost = self._quotas.cost(self._model, prompt, completion) if max_cost else 0
        lease_id = secrets.token_hex(8) if quota.tokens_per_month or max_cost else ""
        reservation = Reservation(current_month(), tokens, cost, lease_id)
        owed, owed_cost = local.owed, local.owed_cost if max_cost else 0
        try:
            reply = await self._reserve_in_redis(team, reservation, owed, owed_cost, max_cost)
        except RedisUnavailable:
            reply = local.reserve(quota, self._quotas.routers, tokens, cost, max_cost)
        if reply.refused_by == "cost":
            raise self._quotas.budget_spent(team)
        if reply.refused_by:
            raise quota_exceeded(cast(Limit, reply.refused_by), quota, reply.wait_s)
        if reply.second is not None:
            local.owed -= owed
            local.owed_cost -= owed_cost
            if lease_id:
                local.reserved.add(reservation.encoded)
        local.month = reply.month
        if max_cost:
            local.cost = reply.cost
        local.tokens.add(tokens)
        self._reservation, self._second, self._priced = reservation, reply.second, bool(max_cost)
        self.headers |= _limit_headers("tokens", quota.tokens_per_minute, reply.tokens, reply.tokens_reset_s)

    async def _reserve_in_redis(
        self, team: Team, reservation: Reservation, owed: int, owed_cost: int, max_cost: int
    ) -> ReserveReply:
        counters = self._quotas.counters
        reply = await counters.reserve(team, reservation, owed, owed_cost, max_cost)
        if reply.refused_by == "unknown":
            # The first request of a month, or the first one since there is a budget.
            await counters.set_cost(team.name, reservation.month, await self._quotas.spent(team))
            reply = await counters.reserve(team, reservation, owed, owed_cost, max_cost)
        return reply

    async def settle(self, prompt: int, completion: int = 0) -> None:
        """Counts the tokens that it has used in place of those reserved."""
        reservation, self._reservation = self._reservation, None
        if self._team is None or reservation is None:
            return
        team, local, used = self._team, self._quotas.local[self._team.name], prompt + completion
        cost = self._quotas.cost(self._model, prompt, completion) if self._priced else 0
        local.tokens.add(used - reservation.tokens)
        local.month += used - reservation.tokens
        local.cost += cost - reservation.cost
        local.reserved.discard(reservation.encoded)
        if self._second is not None:
            with suppress(RedisUnavailable):
                settled = cost if self._priced else None
                use = await self._quotas.counters.settle(team, reservation, self._second, used, settled)
                await self._quotas.note(team, reservation.month, use, priced=self._priced)
                return
            if reservation.id:  # Redis gives all of it back
                reservation = reservation._replace(tokens=0, cost=0)
        local.owed += used - reservation.tokens
        local.owed_cost += cost - reservation.cost

    async def release(self) -> None:
        """The request has ended."""
        if self._team is None:
            return
        local = self._quotas.local[self._team.name]
        local.running.discard(self._request_id)
        if self._reservation is not None:
            local.reserved.discard(self._reservation.encoded)
        if self._team.quota.requests_at_a_time:
            # While Redis is away, its lease ends by itself within seconds.
            with suppress(RedisUnavailable):
                await self._quotas.counters.release(self._team.name, self._request_id)


class Quotas:
    """Admits the requests of one router."""

    def __init__(
        self,
        store: RedisStore,
        routers: int,
        clock: Callable[[], float] = time.time,
        lease_s: int = LEASE_S,
        budgets: Budgets | None = None,
    ) -> None:
        """routers: how many share each limit while Redis is away. lease_s: as QuotaCounters takes it. budgets: None:
        nothing has a price."""
        self.routers = max(1, routers)
        self._budgets = budgets
        self.counters = QuotaCounters(store, lease_s)
        self.local: defaultdict[str, LocalUse] = defaultdict(lambda: LocalUse(clock))
        """What this router has counted, by team."""

    async def admit(self, team: Team | None, model: str = "", *, in_batch: bool = False) -> QuotaGrant:
        """Admits a request. model: whose price its tokens have. Raises ApiError 429, and then nothing is counted.

        in_batch: only its tokens count, as each line of a batch would take a place from the team's people.
        """
        if team is not None and in_batch:
            team = replace(team, quota=replace(team.quota, requests_per_minute=0, requests_at_a_time=0))
        if team is None or not team.bounded:
            return QuotaGrant(self, None, "", {})
        if in_batch:
            return QuotaGrant(self, team, "", {}, model)
        quota, local, request_id = team.quota, self.local[team.name], secrets.token_hex(8)
        max_cost = self.max_cost(team, model)
        try:
            reply = await self.counters.admit(team, request_id, max_cost)
            local.month = reply.month + local.owed
            if max_cost:
                local.cost = reply.cost + local.owed_cost
        except RedisUnavailable:
            reply = local.admit(quota, self.routers, max_cost)
        if reply.refused_by == "cost":
            raise self.budget_spent(team)
        if reply.refused_by:
            raise quota_exceeded(reply.refused_by, quota, reply.wait_s)
        local.requests.add(1)
        local.running.add(request_id)
        headers = _limit_headers("requests", quota.requests_per_minute, reply.requests, reply.requests_reset_s)
        headers |= _limit_headers("tokens", quota.tokens_per_minute, reply.tokens, reply.tokens_reset_s)
        return QuotaGrant(self, team, request_id, headers, model)

    def max_cost(self, team: Team, model: str) -> int:
        """What the team may spend in a month on models like this one; 0: not limited."""
        return self._budgets.limit(team, model) if self._budgets is not None and team.cost_per_month else 0

    def cost(self, model: str, prompt: int, completion: int) -> int:
        """What these tokens cost, in billionths of the currency."""
        return self._budgets.cost(model, prompt, completion) if self._budgets is not None else 0

    async def spent(self, team: Team) -> int:
        """The cost of what the team has used in this month. Raises RedisUnavailable."""
        return await self._budgets.spent(team) if self._budgets is not None else 0

    async def note(self, team: Team, month: str, use: Use, *, priced: bool) -> None:
        """Warns of what the team has used of its limits of the month."""
        if self._budgets is not None:
            await self._budgets.note(self.counters, team, month, use, priced=priced)

    def budget_spent(self, team: Team) -> ApiError:
        """429: the team's money of the month is spent."""
        currency = self._budgets.currency if self._budgets is not None else ""
        return ApiError(
            429,
            f"Your team's budget of {team.cost_per_month:g} {currency} a month is spent. {_NEXT_MONTH}",
            code="insufficient_quota",
            kind="insufficient_quota",
        )

    async def renew_forever(self) -> None:
        """Renews the leases of running requests and of reservations until cancelled; those of a dead router end by
        themselves."""
        while True:
            await asyncio.sleep(self.counters.lease_s / 3)
            for name, local in tuple(self.local.items()):
                if local.running or local.reserved:
                    with suppress(RedisUnavailable):
                        await self.counters.renew(name, tuple(local.running), tuple(local.reserved))


def quota_exceeded(limit: Limit, quota: Quota, wait_s: int) -> ApiError:
    """429 that names the limit and when to try again."""
    kind, code, field, noun, period = _REFUSALS[limit]
    message = f"Your team's limit of {plural(getattr(quota, field), noun)} {period} is reached. "
    if limit == "month":
        message += _NEXT_MONTH
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
