"""`dray teams` and `dray keys`: who may ask, how much, and what they have used."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from cluster.commands.console import AsJson, Config, StateDir, err, fail, found, out, redis_at, settled
from cluster.records import teams as registry
from cluster.records import usage as used
from cluster.records.teams import ADMIN, KeyMade, Quota, Team, TeamsError

teams = typer.Typer(help="Teams, their shares and quotas.", no_args_is_help=True, epilog="Example: dray teams list")
keys = typer.Typer(
    help="Keys of teams, and what teams have used.", no_args_is_help=True, epilog="Example: dray keys create support"
)

Name = Annotated[str, typer.Argument(help="The team.")]
Number = Annotated[str, typer.Argument(help="The key's id, as `dray keys list` shows it.")]
Models = Annotated[list[str] | None, typer.Option("--model", help="A model it may ask, again for each; none: all.")]
Weight = Annotated[float | None, typer.Option(help="Its share under load, beside the others'; 1 if not given.")]
Shares = Annotated[
    bool | None, typer.Option("--share-answers/--own-answers", help="Read and write the answers that such teams share.")
]
PerMinute = Annotated[int | None, typer.Option(help="Requests a minute; 0: no bound.")]
TokensPerMinute = Annotated[int | None, typer.Option(help="Tokens a minute; 0: no bound.")]
AtATime = Annotated[int | None, typer.Option(help="Requests at a time; 0: no bound.")]
PerMonth = Annotated[int | None, typer.Option(help="Tokens a month (UTC); 0: no bound.")]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@contextmanager
def _redis(config: Config, state_dir: StateDir) -> Iterator[Any]:
    """The teams' Redis: of the settings, or of the Dray that runs here."""
    url = settled(config, state_dir=state_dir).settings.teams.url or found(config, state_dir).teams
    try:
        with redis_at(url) as client:
            yield client
    except TeamsError as error:
        raise fail(str(error)) from None


@teams.command(epilog="Example: dray teams add support --tokens-per-minute 60000 --weight 2")
def add(
    name: Name,
    model: Models = None,
    weight: Weight = None,
    share_answers: Shares = None,
    requests_per_minute: PerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    requests_at_a_time: AtATime = None,
    tokens_per_month: PerMonth = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Add a team."""
    with _redis(config, state_dir) as client:
        quota = _quota(Quota(), requests_per_minute, tokens_per_minute, requests_at_a_time, tokens_per_month)
        changes = _changes(model, weight, share_answers)
        registry.add_team(client, Team(name, time.time(), quota=quota, **changes))
    out.print(f"added {name}; give it a key: dray keys create {name}", highlight=False)


@teams.command("set", epilog="Example: dray teams set support --requests-at-a-time 8")
def change(
    name: Name,
    model: Models = None,
    weight: Weight = None,
    share_answers: Shares = None,
    requests_per_minute: PerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    requests_at_a_time: AtATime = None,
    tokens_per_month: PerMonth = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Change a team; what is not named stays."""
    with _redis(config, state_dir) as client:
        now = registry.read_team(client, name).quota
        quota = _quota(now, requests_per_minute, tokens_per_minute, requests_at_a_time, tokens_per_month)
        registry.change_team(client, name, quota=quota, **_changes(model, weight, share_answers))
    out.print(f"changed {name}", highlight=False)


@teams.command("list", epilog="Example: dray teams list --json")
def list_teams(as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """Show all teams."""
    with _redis(config, state_dir) as client:
        every = registry.read_registry(client)
    if as_json:
        out.print_json(data=[msgspec.to_builtins(team) for team in every.teams.values()])
        return
    table = Table(
        "team", "keys", "models", "weight", "answers", "requests/min", "tokens/min", "at a time", "tokens/month"
    )
    for team in every.teams.values():
        count = sum(key.team == team.name and key.holds(time.time()) for key in every.keys.values())
        quota = (str(number or "-") for number in msgspec.structs.astuple(team.quota))
        answers = "shared" if team.shares_answers else "own"
        table.add_row(
            team.name, str(count), escape(", ".join(team.models)) or "all", f"{team.weight:g}", answers, *quota
        )
    out.print(table)


@teams.command(epilog="Example: dray teams remove support")
def remove(name: Name, state_dir: StateDir = None, config: Config = None) -> None:
    """Take a team away, with its keys."""
    with _redis(config, state_dir) as client:
        count = registry.remove_team(client, name)
    out.print(f"removed {name} and its {count} keys", highlight=False)


@keys.command(epilog="Example: dray keys create support --label 'bot in production' --expires-in 90d")
def create(
    team: Annotated[str | None, typer.Argument(help="The team that it is for.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="For administering teams and keys over HTTP instead.")] = False,
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires_in: Annotated[str, typer.Option(help="How long it holds: 90d, 12h, 30m; never ends if not given.")] = "",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Make a key and print it, this once."""
    if admin == bool(team):
        raise fail("name a team, or say --admin")
    with _redis(config, state_dir) as client:
        made = registry.create_key(client, team or ADMIN, label, _seconds(expires_in) if expires_in else 0.0)
    _print_made(made, as_json)


@keys.command("list", epilog="Example: dray keys list --json")
def list_keys(as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """Show all keys, without what is secret in them."""
    with _redis(config, state_dir) as client:
        every = sorted(registry.read_registry(client).keys.values(), key=lambda key: (key.team, key.created))
    if as_json:
        out.print_json(data=[key.shown() for key in every])
        return
    table = Table("id", "team", "label", "made", "ends")
    for key in every:
        ends = "never" if not key.ends else _time(key.ends) if key.holds(time.time()) else "has ended"
        table.add_row(key.id, key.team or "(admin)", escape(key.label), _time(key.created), ends)
    out.print(table)


@keys.command(epilog="Example: dray keys rotate k3v9x0ab12 --grace 24h")
def rotate(
    number: Number,
    grace: Annotated[str, typer.Option(help="How long the old key still works: 90d, 12h, 30m.")] = "24h",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Replace a key. The new one has its team and label and expires when it would have."""
    with _redis(config, state_dir) as client:
        made = registry.rotate_key(client, number, _seconds(grace))
    _print_made(made, as_json)


@keys.command(epilog="Example: dray keys revoke k3v9x0ab12")
def revoke(number: Number, state_dir: StateDir = None, config: Config = None) -> None:
    """End a key; within a second no router takes it."""
    with _redis(config, state_dir) as client:
        registry.end_key(client, number)
    out.print(f"revoked {number}", highlight=False)


@keys.command(epilog="Example: dray keys usage --team support --days 7")
def usage(
    team: Annotated[str | None, typer.Option(help="Only this team.")] = None,
    days: Annotated[int, typer.Option(min=1, max=400, help="So many days until today.")] = 30,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Show what teams have used, by model and day, and what the answer cache saved them."""
    with _redis(config, state_dir) as client, client.pipeline() as pipe:
        asked = used.ask(pipe, days)
        rows = used.rows(dict(zip(asked, pipe.execute(), strict=True)), team)
    if as_json:
        out.print_json(data=[msgspec.to_builtins(row) for row in rows])
        return
    heads = ("day", "team", "model", "requests", "of them hits", "prompt", "of it cached", "completion", "saved")
    table = Table(*heads)
    for row in rows:
        saved = row.saved_prompt + row.saved_completion
        counts = (row.requests, row.hits, row.prompt, row.cached, row.completion, saved)
        table.add_row(row.day, row.team, escape(row.model), *(f"{count:,}" for count in counts))
    out.print(table)


def _quota(now: Quota, *numbers: int | None) -> Quota:
    given = dict(zip(Quota.__struct_fields__, numbers, strict=True))
    return Quota(**{name: getattr(now, name) if number is None else number for name, number in given.items()})


def _changes(models: list[str] | None, weight: float | None, shares: bool | None) -> dict[str, Any]:
    given = {"models": None if models is None else tuple(models), "weight": weight, "shares_answers": shares}
    return {name: value for name, value in given.items() if value is not None}


def _print_made(made: KeyMade, as_json: bool) -> None:
    if as_json:
        out.print_json(data=made.key.shown() | {"key": made.secret})
        return
    out.print(made.secret, highlight=False, soft_wrap=True)
    err.print(f"id {made.key.id}; the key is not shown again", style="dim", highlight=False)


def _seconds(text: str) -> float:
    if not (parts := re.fullmatch(r"(\d+)([smhd])", text)):
        raise fail(f"{text!r} is no time such as 30m, 12h or 90d")
    return float(parts[1]) * _UNITS[parts[2]]


def _time(when: float) -> str:
    return datetime.fromtimestamp(when).isoformat(sep=" ", timespec="minutes")
