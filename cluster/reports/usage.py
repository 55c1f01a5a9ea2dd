"""Usage as administrators read it: summed up as they want it, and in money where models have prices."""

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Literal, get_args

import msgspec

from cluster.records.usage import COUNTERS, UsageRow
from cluster.reports.prices import Prices

Grouping = Literal["day", "team", "model"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)


class UsageSum(msgspec.Struct, frozen=True):
    """Rows of usage, summed up. day, team, model: empty where rows of several are in it.

    The counters are those of UsageRow. cost, saved_cost: of the tokens that engines computed, and of those that the
    answer cache saved; None: no model in it has a price.
    """

    day: str = ""
    team: str = ""
    model: str = ""
    requests: int = 0
    hits: int = 0
    joins: int = 0
    curated: int = 0
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    saved_prompt: int = 0
    saved_completion: int = 0
    cost: float | None = None
    saved_cost: float | None = None


def summed(rows: Iterable[UsageRow], by: Collection[Grouping], prices: Prices) -> list[UsageSum]:
    """The sums for each of what `by` names, sorted by day, team and model; one of all rows if it names nothing."""
    counts: dict[tuple[str, str, str], Counter[str]] = {}
    costs: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in rows:
        key = (
            row.day if "day" in by else "",
            row.team if "team" in by else "",
            row.model if "model" in by else "",
        )
        counts.setdefault(key, Counter()).update({name: getattr(row, name) for name in COUNTERS})
        money = {
            "cost": prices.cost(row.model, row.prompt, row.completion),
            "saved_cost": prices.cost(row.model, row.saved_prompt, row.saved_completion),
        }
        sums = costs.setdefault(key, {})
        for name, amount in money.items():
            if amount is not None:
                sums[name] = sums.get(name, 0.0) + amount
    return [UsageSum(*key, **counts[key], **costs[key]) for key in sorted(counts)]


def total(rows: Iterable[UsageRow], prices: Prices) -> UsageSum:
    """The sum of all rows."""
    return next(iter(summed(rows, (), prices)), UsageSum())
