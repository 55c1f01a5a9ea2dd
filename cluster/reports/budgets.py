"""What teams have used of their tokens and money of the month."""

import datetime
from collections.abc import Iterable
from typing import Literal

import msgspec

from cluster.records.client import BlockingRedis
from cluster.records.team_records import Team
from cluster.records.usage import read_rows
from cluster.reports.prices import Prices

WARN_FROM = 0.8
"""Share of a limit from which there is a warning."""


class Budget(msgspec.Struct, frozen=True):
    """What a team has used in a month (UTC).

    tokens, cost: of what engines computed for it; the cost is None where no model of it has a price. tokens_limit,
    cost_limit: 0: unlimited. used: share of the limit that is nearer to its end.
    """

    team: str
    month: str
    tokens: int
    tokens_limit: int
    cost: float | None
    cost_limit: float
    used: float
    state: Literal["ok", "warning", "exceeded"]


def read_budgets(client: BlockingRedis, teams: Iterable[Team], prices: Prices) -> list[Budget]:
    """Those of these teams in the present month, in the order of the teams."""
    now = datetime.datetime.now(datetime.UTC)
    tokens: dict[str, int] = {}
    costs: dict[str, float] = {}
    for row in read_rows(client, now.day):
        tokens[row.team] = tokens.get(row.team, 0) + row.prompt + row.completion
        if (cost := prices.cost(row.model, row.prompt, row.completion)) is not None:
            costs[row.team] = costs.get(row.team, 0.0) + cost
    return [_budget(team, f"{now:%Y-%m}", tokens.get(team.name, 0), costs.get(team.name)) for team in teams]


def _budget(team: Team, month: str, tokens: int, cost: float | None) -> Budget:
    of_tokens, of_cost = team.quota.tokens_per_month, team.cost_per_month
    shares = [tokens / of_tokens if of_tokens else 0.0, (cost or 0.0) / of_cost if of_cost else 0.0]
    used = max(shares)
    state: Literal["ok", "warning", "exceeded"] = "exceeded" if used >= 1 else "warning" if used >= WARN_FROM else "ok"
    return Budget(team.name, month, tokens, of_tokens, cost, of_cost, used, state)
