"""`dray teams` and `dray keys`: teams, their quotas and API keys, and what they have used."""

import re
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import msgspec
import typer

from cluster.commands.auditing import audit, team_fields
from cluster.commands.console import (
    AsJson,
    Config,
    StateDir,
    err,
    fail,
    load_settings,
    out,
    print_json,
    redis_client,
    running_record,
)
from cluster.records import teams as registry
from cluster.records import usage as usage_records
from cluster.records.client import BlockingRedis
from cluster.records.team_records import ADMIN, CreatedKey, Key, Quota, Team, TeamsError
from cluster.records.team_tables import unlock
from cluster.settings import is_loopback
from cluster.tables import DataTable
from cluster.units import plural

teams = typer.Typer(
    help="Manage teams: quotas, models and shares of capacity.", no_args_is_help=True, epilog="Example: dray teams list"
)
keys = typer.Typer(
    help="Manage API keys, and show usage.", no_args_is_help=True, epilog="Example: dray keys create support"
)

Name = Annotated[str, typer.Argument(help="Name of the team.")]
KeyId = Annotated[str, typer.Argument(help="Id of the key, as `dray keys list` shows it.")]
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

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@contextmanager
def _redis(config: Config, state_dir: StateDir) -> Iterator[BlockingRedis]:
    """The teams' Redis: the one in the settings, else that of the running Dray."""
    url = load_settings(config, state_dir=state_dir).settings.teams.url or running_record(config, state_dir).teams
    try:
        with redis_client(url) as client:
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
    requests_at_a_time: Concurrency = None,
    tokens_per_month: PerMonth = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Add a team."""
    with _redis(config, state_dir) as client:
        quota = _quota(Quota(), requests_per_minute, tokens_per_minute, requests_at_a_time, tokens_per_month)
        changes = _changes(model, weight, share_answers)
        registry.add_team(client, Team(name, time.time(), quota=quota, **changes))
    audit(config, state_dir, "team.create", name, **team_fields(changes, quota))
    out.print(f"added {name}; create a key for it: dray keys create {name}", highlight=False)


@teams.command("set", epilog="Example: dray teams set support --requests-at-a-time 8")
def change(
    name: Name,
    model: Models = None,
    weight: Weight = None,
    share_answers: Shares = None,
    requests_per_minute: PerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    requests_at_a_time: Concurrency = None,
    tokens_per_month: PerMonth = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Change a team. Options that are not given leave their values unchanged."""
    with _redis(config, state_dir) as client:
        current = registry.read_team(client, name).quota
        quota = _quota(current, requests_per_minute, tokens_per_minute, requests_at_a_time, tokens_per_month)
        changes = _changes(model, weight, share_answers)
        registry.change_team(client, name, quota=quota, **changes)
    audit(config, state_dir, "team.change", name, **team_fields(changes, quota))
    out.print(f"changed {name}", highlight=False)


@teams.command("list", epilog="Example: dray teams list --json")
def list_teams(as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """List all teams."""
    with _redis(config, state_dir) as client:
        known = registry.read_registry(client)
    if as_json:
        print_json([msgspec.to_builtins(team) for team in known.teams.values()])
        return
    out.print(teams_table(known.teams.values(), known.keys.values()))


def teams_table(known: Iterable[Team], created: Collection[Key]) -> DataTable:
    """Teams, with the number of each one's valid keys."""
    limits = ("requests/min", "tokens/min", "concurrent", "tokens/month")
    drop = ("answers", "models", "weight", "concurrent", "requests/min", "keys", "tokens/month")
    heads = ("team", "keys", "models", "weight", "answers", *limits)
    table = DataTable(*heads, right=["keys", "weight", *limits], drop=drop)
    for team in known:
        count = sum(key.team == team.name and key.is_valid(time.time()) for key in created)
        quota = (str(limit or "-") for limit in msgspec.structs.astuple(team.quota))
        answers = "shared" if team.shares_answers else "own"
        table.add_row(team.name, str(count), ", ".join(team.models) or "all", f"{team.weight:g}", answers, *quota)
    return table


@teams.command(epilog="Example: dray teams remove support")
def remove(name: Name, state_dir: StateDir = None, config: Config = None) -> None:
    """Remove a team and its keys."""
    with _redis(config, state_dir) as client:
        count = registry.remove_team(client, name)
    audit(config, state_dir, "team.remove", name, keys=count)
    out.print(f"removed {name} and its {plural(count, 'key')}", highlight=False)


@keys.command(epilog="Example: dray keys create support --label 'bot in production' --expires-in 90d")
def create(
    team: Annotated[str | None, typer.Argument(help="Team that the key is for.")] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="Create an admin key instead: it manages teams and keys over HTTP.")
    ] = False,
    label: Annotated[str, typer.Option(help="Note on what the key is for.")] = "",
    expires_in: Annotated[str, typer.Option(help="Lifetime: 90d, 12h, 30m. Default: never expires.")] = "",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Create an API key and print it; it is not shown again."""
    if admin == bool(team):
        raise fail("give either a team or --admin")
    with _redis(config, state_dir) as client:
        created = registry.create_key(client, team or ADMIN, label, _seconds(expires_in) if expires_in else 0.0)
    audit(config, state_dir, "key.create", created.key.id, team=created.key.team, label=label)
    _print_created(created, as_json)


@keys.command("list", epilog="Example: dray keys list --json")
def list_keys(as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """List all keys, without their secrets."""
    with _redis(config, state_dir) as client:
        listed = sorted(registry.read_registry(client).keys.values(), key=lambda key: (key.team, key.created))
    if as_json:
        print_json([key.public_fields() for key in listed])
        return
    out.print(keys_table(listed))


def keys_table(listed: Iterable[Key]) -> DataTable:
    """Keys, without their secrets."""
    table = DataTable("id", "team", "label", "created", "expires", drop=["created", "label"])
    for key in listed:
        ends = "never" if not key.ends else _time(key.ends) if key.is_valid(time.time()) else "expired or revoked"
        table.add_row(key.id, key.team or "(admin)", key.label, _time(key.created), ends)
    return table


@keys.command(epilog="Example: dray keys rotate k3v9x0ab12 --grace 24h")
def rotate(
    key_id: KeyId,
    grace: Annotated[str, typer.Option(help="How long the old key still works: 90d, 12h, 30m.")] = "24h",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Replace a key. The new one has its team and label and expires when it would have."""
    with _redis(config, state_dir) as client:
        created = registry.rotate_key(client, key_id, _seconds(grace))
    audit(config, state_dir, "key.rotate", key_id, team=created.key.team, new=created.key.id)
    _print_created(created, as_json)


@keys.command(epilog="Example: dray keys revoke k3v9x0ab12")
def revoke(key_id: KeyId, state_dir: StateDir = None, config: Config = None) -> None:
    """Revoke a key. All routers refuse it within a second."""
    with _redis(config, state_dir) as client:
        revoked = registry.revoke_key(client, key_id)
    audit(config, state_dir, "key.revoke", key_id, team=revoked.key.team)
    out.print(f"revoked {key_id}", highlight=False)
    if not revoked.kept:
        full = "the disk of data_dir is full, so this is not kept: after a restart the key is valid again"
        err.print(f"warning: {full}. Make room; `dray status` says when it is kept.", highlight=False)


@keys.command("remove", epilog="Example: dray keys remove k3v9x0ab12")
def remove_key(key_id: KeyId, state_dir: StateDir = None, config: Config = None) -> None:
    """Delete the record of a key that has expired or was revoked."""
    with _redis(config, state_dir) as client:
        registry.remove_key(client, key_id)
    audit(config, state_dir, "key.remove", key_id)
    out.print(f"removed {key_id}", highlight=False)


@keys.command(epilog="Example: dray keys disable --yes")
def disable(
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Delete every key and answer requests without one again. Every program on this machine can then use Dray.

    Removing the last key does not do this: every request is then refused. Teams, their settings and their usage are
    kept. Refused unless Dray listens on a loopback address only.
    """
    host = str(running_record(config, state_dir).settings["host"])
    if not is_loopback(host):
        raise fail(f"Dray listens on {host}, where others reach it, so it needs keys; set host to 127.0.0.1 first")
    if not yes:
        typer.confirm("Delete every key, and let every program on this machine use Dray without one?", abort=True)
    with _redis(config, state_dir) as client:
        count = unlock(client)
    audit(config, state_dir, "keys.disable", keys=count)
    out.print(f"deleted {plural(count, 'key')}; no key is needed any more", highlight=False)


@keys.command(epilog="Example: dray keys usage --team support --days 7")
def usage(
    team: Annotated[str | None, typer.Option(help="Only this team.")] = None,
    days: Annotated[int, typer.Option(min=1, max=400, help="Number of days, today included.")] = 30,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Show usage by day, team and model, and what the answer cache saved."""
    with _redis(config, state_dir) as client, client.pipeline() as pipe:
        names = usage_records.queue_reads(pipe, days)
        rows = usage_records.rows(dict(zip(names, pipe.execute(), strict=True)), team)
    if as_json:
        print_json([msgspec.to_builtins(row) for row in rows])
        return
    out.print(usage_table(rows))


def usage_table(rows: Iterable[usage_records.UsageRow]) -> DataTable:
    """Usage by day, team and model."""
    counted = ("requests", "hits", "prompt", "cached prompt", "completion", "saved")
    drop = ("cached prompt", "hits", "prompt", "saved")
    table = DataTable("day", "team", "model", *counted, right=counted, drop=drop)
    for row in rows:
        saved = row.saved_prompt + row.saved_completion
        counts = (row.requests, row.hits, row.prompt, row.cached, row.completion, saved)
        table.add_row(row.day, row.team, row.model, *(f"{count:,}" for count in counts))
    return table


def _quota(current: Quota, *limits: int | None) -> Quota:
    """The quota with these limits, in the order of its fields; None keeps the current one."""
    given = dict(zip(Quota.__struct_fields__, limits, strict=True))
    return Quota(**{name: getattr(current, name) if limit is None else limit for name, limit in given.items()})


def _changes(models: list[str] | None, weight: float | None, shares: bool | None) -> dict[str, Any]:
    given = {"models": None if models is None else tuple(models), "weight": weight, "shares_answers": shares}
    return {name: value for name, value in given.items() if value is not None}


def _print_created(created: CreatedKey, as_json: bool) -> None:
    if as_json:
        print_json(created.key.public_fields() | {"key": created.secret})
        return
    out.print(created.secret, highlight=False, soft_wrap=True)
    err.print(f"id {created.key.id}; the key is not shown again", style="dim", highlight=False)


def _seconds(text: str) -> float:
    if not (parts := re.fullmatch(r"(\d+)([smhd])", text)):
        raise fail(f"{text!r} is not a duration: write it like 30m, 12h or 90d")
    return float(parts[1]) * _UNITS[parts[2]]


def _time(when: float) -> str:
    return datetime.fromtimestamp(when).isoformat(sep=" ", timespec="minutes")
