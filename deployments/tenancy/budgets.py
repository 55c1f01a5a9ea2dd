"""What tokens cost teams, by the prices of the models, and the warning before a month's limit is reached."""

import datetime
import logging
from collections.abc import Callable
from contextlib import suppress

from cluster.records.team_records import Team
from cluster.reports.budgets import WARN_FROM
from cluster.reports.prices import Prices
from deployments.common.redis import RedisUnavailable
from deployments.tenancy.quota_counters import QuotaCounters, Use
from deployments.tenancy.usage import UsageRecorder

log = logging.getLogger("dray.teams")

UNITS = 1_000_000_000
"""Costs are counted in whole billionths of the currency: a token may cost less than a millionth."""

OnUse = Callable[[str, str, float], None]
"""Takes a team, `tokens` or `cost`, and the share of that limit which the team has used in the month."""


class Budgets:
    """The costs and warnings of one router."""

    def __init__(self, prices: Prices, usage: UsageRecorder, on_use: OnUse) -> None:
        self.currency = prices.currency
        self._prices = prices
        self._usage = usage
        self._on_use = on_use
        self._warned: set[tuple[str, str]] = set()

    def cost(self, model: str, prompt: int, completion: int) -> int:
        """What these tokens cost; 0 for a model without a price."""
        return round((self._prices.cost(model, prompt, completion) or 0.0) * UNITS)

    def limit(self, team: Team, model: str) -> int:
        """What the team may spend in a month; 0: all it wants, as for a model that costs nothing."""
        return round(team.cost_per_month * UNITS) if self._prices.cost(model, 1, 1) else 0

    async def spent(self, team: Team) -> int:
        """The cost of this month's usage, at the present prices. Raises RedisUnavailable."""
        rows = await self._usage.read(datetime.datetime.now(datetime.UTC).day, team.name)
        return sum(self.cost(row.model, row.prompt, row.completion) for row in rows)

    async def note(self, counters: QuotaCounters, team: Team, month: str, use: Use, *, priced: bool) -> None:
        """Shows what the team has used, and logs once a month that it comes near its limit. priced: the cost is
        known."""
        shares = {}
        if limit := team.quota.tokens_per_month:
            shares["tokens"] = use.tokens / limit
        if priced and team.cost_per_month:
            shares["cost"] = use.cost / (team.cost_per_month * UNITS)
        for name, share in shares.items():
            self._on_use(team.name, name, share)
        near = [name for name, share in shares.items() if share >= WARN_FROM]
        if not near or (team.name, month) in self._warned:
            return
        with suppress(RedisUnavailable):
            if await counters.claim_warning(team.name, month):
                percent = round(100 * max(shares[name] for name in near))
                words = f"a team has used {percent} % of its {' and '.join(near)} of the month"
                log.warning(words, extra={"team": team.name, "month": month})
            self._warned = {known for known in self._warned if known[1] == month} | {(team.name, month)}
