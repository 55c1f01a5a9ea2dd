"""`dray teams`: teams, their quotas and what they may use."""

import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
import typer

from cluster.commands.auditing import audit, team_fields
from cluster.commands.console import (
    AsJson,
    Config,
    StateDir,
    fail,
    load_settings,
    out,
    print_done,
    print_json,
    redis_client,
    running_record,
)
from cluster.launch.state import read_record
from cluster.records import teams as registry
from cluster.records.client import BlockingRedis
from cluster.records.privacy import check_keys
from cluster.records.sealing import SealingError
from cluster.records.team_records import Key, Quota, Team, TeamsError
from cluster.reports.budgets import Budget, read_budgets
from cluster.reports.prices import Prices
from cluster.settings import PriceSettings
from cluster.tables import DataTable
from cluster.units import plural

app = typer.Typer(
    help="Manage teams: quotas, models and shares of capacity.", no_args_is_help=True, epilog="Example: dray teams list"
)

Name = Annotated[str, typer.Argument(help="Name of the team.")]
Models = Annotated[list[str] | None, typer.Option("--model", help="A model that it may use; repeatable. Default: all.")]
Weight = Annotated[
    float | None, typer.Option(help="Its share of capacity under load, relative to other teams'. Default: 1.")
]
Shares = Annotated[
    bool | None,
    typer.Option(
        "--share-answers/--own-answers",
        help="Use the answer cache that all sharing teams have in common, instead of its own.",
    ),
]
PerMinute = Annotated[int | None, typer.Option(help="Requests per minute; 0: unlimited.")]
TokensPerMinute = Annotated[int | None, typer.Option(help="Tokens per minute; 0: unlimited.")]
Concurrency = Annotated[int | None, typer.Option(help="Concurrent requests; 0: unlimited.")]
PerMonth = Annotated[int | None, typer.Option(help="Tokens per calendar month (UTC); 0: unlimited.")]
CostPerMonth = Annotated[
    float | None,
    typer.Option(help="Money per calendar month (UTC), by prices.models in prices.currency; 0: unlimited."),
]


@contextmanager
def teams_redis(config: Config, state_dir: StateDir) -> Iterator[BlockingRedis]:
    """The teams' Redis: the one in the settings, else that of the running Dray."""
    url = load_settings(config, state_dir=state_dir).settings.teams.url or running_record(config, state_dir).teams
    try:
        with redis_client(url) as client:
            if fault := check_keys(client):
                raise fail(fault)
            yield client
    except (TeamsError, SealingError) as error:
        raise fail(str(error)) from None


@app.command(epilog="Example: dray teams add support --tokens-per-minute 60000 --weight 2")
def add(
    name: Name,
    model: Models = None,
    weight: Weight = None,
    share_answers: Shares = None,
    requests_per_minute: PerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    requests_at_a_time: Concurrency = None,
    tokens_per_month: PerMonth = None,
    cost_per_month: CostPerMonth = None,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Add a team."""
    with teams_redis(config, state_dir) as client:
        quota = _quota(Quota(), requests_per_minute, tokens_per_minute, requests_at_a_time, tokens_per_month)
        changes = _changes(model, weight, share_answers, cost_per_month)
        team = Team(name, time.time(), quota=quota, **changes)
        registry.add_team(client, team)
    audit(config, state_dir, "team.create", name, **team_fields(changes, quota))
    sentence = f"added {name}; create a key for it: dray keys create {name}"
    print_done(msgspec.to_builtins(team), sentence, as_json)


@app.command("set", epilog="Example: dray teams set support --requests-at-a-time 8")
def change(
    name: Name,
    model: Models = None,
    weight: Weight = None,
    share_answers: Shares = None,
    requests_per_minute: PerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    requests_at_a_time: Concurrency = None,
    tokens_per_month: PerMonth = None,
    cost_per_month: CostPerMonth = None,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Change a team. Options that are not given leave their values unchanged."""
    with teams_redis(config, state_dir) as client:
        current = registry.read_team(client, name).quota
        quota = _quota(current, requests_per_minute, tokens_per_minute, requests_at_a_time, tokens_per_month)
        changes = _changes(model, weight, share_answers, cost_per_month)
        team = registry.change_team(client, name, quota=quota, **changes)
    audit(config, state_dir, "team.change", name, **team_fields(changes, quota))
    print_done(msgspec.to_builtins(team), f"changed {name}", as_json)


@app.command("list", epilog="Example: dray teams list --json")
def list_teams(as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """List all teams."""
    with teams_redis(config, state_dir) as client:
        known = registry.read_registry(client)
        budgets = read_budgets(client, known.teams.values(), current_prices(config, state_dir))
    if as_json:
        print_json([msgspec.to_builtins(team) for team in known.teams.values()])
        return
    out.print(teams_table(known.teams.values(), known.keys.values(), budgets))


def teams_table(known: Iterable[Team], created: Collection[Key], budgets: Iterable[Budget] = ()) -> DataTable:
    """Teams, with the number of each one's valid keys, and what they have used of their limits of the month."""
    limits = ("requests/min", "tokens/min", "concurrent", "tokens/month", "cost/month")
    drop = ("answers", "models", "weight", "concurrent", "requests/min", "keys", "cost/month", "tokens/month")
    heads = ("team", "keys", "models", "weight", "answers", *limits, "month used")
    table = DataTable(*heads, right=["keys", "weight", *limits, "month used"], drop=drop)
    used = {budget.team: _share(budget) for budget in budgets}
    for team in known:
        count = sum(key.team == team.name and key.is_valid(time.time()) for key in created)
        quota = [str(limit or "-") for limit in msgspec.structs.astuple(team.quota)]
        quota.append(_money(team.cost_per_month))
        answers = "shared" if team.shares_answers else "own"
        head = (team.name, str(count), ", ".join(team.models) or "all", f"{team.weight:g}", answers)
        table.add_row(*head, *quota, used.get(team.name, "-"))
    return table


@app.command("budgets", epilog="Example: dray teams budgets --json")
def list_budgets(as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """Show what each team has used of its tokens and money of this month; `warning` from 80 %."""
    prices = current_prices(config, state_dir)
    with teams_redis(config, state_dir) as client:
        listed = read_budgets(client, registry.read_registry(client).teams.values(), prices)
    if as_json:
        print_json({"data": msgspec.to_builtins(listed), "currency": prices.currency})
        return
    out.print(budgets_table(listed, prices.currency))


def budgets_table(listed: Iterable[Budget], currency: str) -> DataTable:
    """What teams have used of their month."""
    cost, cost_limit = f"cost ({currency})", f"of {currency}"
    heads = ("tokens", "of", cost, cost_limit, "used")
    table = DataTable("team", *heads, "state", right=heads, drop=("of", cost_limit, cost, "tokens"))
    for each in listed:
        spent = "-" if each.cost is None else f"{each.cost:,.4f}"
        tokens_limit = f"{each.tokens_limit:,}" if each.tokens_limit else "-"
        of_cost = _money(each.cost_limit)
        table.add_row(each.team, f"{each.tokens:,}", tokens_limit, spent, of_cost, _share(each), each.state)
    return table


def current_prices(config: Config, state_dir: StateDir) -> Prices:
    """The prices of the running Dray, which may have other settings than this command; else those of the settings."""
    settings = load_settings(config, state_dir=state_dir).settings
    record = read_record(settings.state_dir)
    if record is not None and "prices" in record.settings:
        return Prices(PriceSettings.model_validate(record.settings["prices"]))
    return Prices(settings.prices)


def _money(limit: float) -> str:
    return f"{limit:,.12g}" if limit else "-"


def _share(budget: Budget) -> str:
    return f"{budget.used:.0%}" if budget.tokens_limit or budget.cost_limit else "-"


@app.command(epilog="Example: dray teams remove support")
def remove(name: Name, as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """Remove a team and its keys."""
    with teams_redis(config, state_dir) as client:
        count = registry.remove_team(client, name)
    audit(config, state_dir, "team.remove", name, keys=count)
    print_done({"name": name, "keys": count}, f"removed {name} and its {plural(count, 'key')}", as_json)


def _quota(current: Quota, *limits: int | None) -> Quota:
    """The quota with these limits, in the order of its fields; None keeps the current one."""
    given = dict(zip(Quota.__struct_fields__, limits, strict=True))
    return Quota(**{name: getattr(current, name) if limit is None else limit for name, limit in given.items()})


def _changes(models: list[str] | None, weight: float | None, shares: bool | None, cost: float | None) -> dict[str, Any]:
    given = {"models": None if models is None else tuple(models), "weight": weight, "shares_answers": shares}
    given["cost_per_month"] = cost
    return {name: value for name, value in given.items() if value is not None}
