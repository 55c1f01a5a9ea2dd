"""Usage as administrators read it: summed up as they want it, and in money where models have prices."""

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
    sums: dict[tuple[str, str, str], UsageSum] = {}
    for row in rows:
        day, team, model = (getattr(row, name) if name in by else "" for name in GROUPINGS)
        known = sums.get((day, team, model)) or UsageSum(day, team, model)
        counts = {name: getattr(known, name) + getattr(row, name) for name in COUNTERS}
        cost = _plus(known.cost, prices.cost(row.model, row.prompt, row.completion))
        saved = _plus(known.saved_cost, prices.cost(row.model, row.saved_prompt, row.saved_completion))
        sums[day, team, model] = msgspec.structs.replace(known, **counts, cost=cost, saved_cost=saved)
    return [sums[key] for key in sorted(sums)]


def _plus(first: float | None, second: float | None) -> float | None:
    """The sum; None only if both are."""
    return first if second is None else (first or 0.0) + second


def total(rows: Iterable[UsageRow], prices: Prices) -> UsageSum:
    """The sum of all rows."""
    return next(iter(summed(rows, (), prices)), UsageSum())
