"""`dray usage`."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer

from cluster.commands.console import AsJson, Config, StateDir, fail, out, print_json
from cluster.commands.teams import current_prices, teams_redis
from cluster.records import usage as records
from cluster.reports.usage import GROUPINGS, Grouping, UsageSum, summed, total
from cluster.tables import DataTable


def usage(
    days: Annotated[int, typer.Option(min=1, max=400, help="Number of days, today included.")] = 62,
    team: Annotated[str, typer.Option(help="Only this team.")] = "",
    model: Annotated[str, typer.Option(help="Only this model.")] = "",
    by: Annotated[str, typer.Option(help="What to sum up by: day, team, model, separated by commas.")] = "team,model",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Show what teams used, what the answer cache saved, and both in money for models with a price (prices.models)."""
    names = by.split(",")
    if unknown := [name for name in names if name not in GROUPINGS]:
        raise fail(f"--by must name some of {', '.join(GROUPINGS)}; {unknown[0]!r} is none")
    groups = [name for name in GROUPINGS if name in names]
    prices = current_prices(config, state_dir)
    with teams_redis(config, state_dir) as client:
        rows = [row for row in records.read_rows(client, days, team or None) if model in ("", row.model)]
    sums, all_of_it = summed(rows, groups, prices), total(rows, prices)
    if as_json:
        report = {"data": sums, "total": all_of_it, "currency": prices.currency}
        print_json(msgspec.to_builtins(report))
        return
    out.print(usage_table(sums, all_of_it, groups, prices.currency))


def usage_table(sums: Sequence[UsageSum], whole: UsageSum, by: Sequence[Grouping], currency: str) -> DataTable:
    """The sums, and the sum of all in the last line."""
    counted = ("requests", "cached answers", "joined", "curated", "prompt", "completion", "saved tokens")
    money = (f"cost ({currency})", f"saved ({currency})") if whole.cost is not None else ()
    table = DataTable(
        *by, *counted, *money, right=(*counted, *money), drop=("curated", "joined", "prompt", "saved tokens")
    )
    for row in (*sums, whole):
        names = [getattr(row, name) for name in by] if row is not whole else ["all", *[""] * (len(by) - 1)]
        stored, saved = row.hits - row.joins - row.curated, row.saved_prompt + row.saved_completion
        counts = (row.requests, stored, row.joins, row.curated, row.prompt, row.completion, saved)
        costs = [_amount(row.cost), _amount(row.saved_cost)] if money else []
        table.add_row(*names, *(f"{count:,}" for count in counts), *costs)
    return table


def _amount(money: float | None) -> str:
    return "-" if money is None else f"{money:,.4f}"
