"""`dray keys`: API keys, and what their teams used."""

import re
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated

import msgspec
import typer

from cluster.commands.auditing import audit
from cluster.commands.console import AsJson, Config, StateDir, err, fail, out, print_done, print_json, running_record
from cluster.commands.teams import current_prices, teams_redis
from cluster.records import teams as registry
from cluster.records import usage as usage_records
from cluster.records.team_records import ADMIN, CreatedKey, Key
from cluster.records.team_tables import unlock
from cluster.reports.budgets import read_budgets
from cluster.settings import is_loopback
from cluster.tables import DataTable
from cluster.units import plural

app = typer.Typer(
    help="Manage API keys, and show usage.", no_args_is_help=True, epilog="Example: dray keys create support"
)

KeyId = Annotated[str, typer.Argument(help="Id of the key, as `dray keys list` shows it.")]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@app.command(epilog="Example: dray keys create support --label 'bot in production' --expires-in 90d")
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
    with teams_redis(config, state_dir) as client:
        created = registry.create_key(client, team or ADMIN, label, _seconds(expires_in) if expires_in else 0.0)
    audit(config, state_dir, "key.create", created.key.id, team=created.key.team, label=label)
    _print_created(created, as_json)


@app.command("list", epilog="Example: dray keys list --json")
def list_keys(as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """List all keys, without their secrets."""
    with teams_redis(config, state_dir) as client:
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


@app.command(epilog="Example: dray keys rotate k3v9x0ab12 --grace 24h")
def rotate(
    key_id: KeyId,
    grace: Annotated[str, typer.Option(help="How long the old key still works: 90d, 12h, 30m.")] = "24h",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Replace a key. The new one has its team and label and expires when it would have."""
    with teams_redis(config, state_dir) as client:
        created = registry.rotate_key(client, key_id, _seconds(grace))
    audit(config, state_dir, "key.rotate", key_id, team=created.key.team, new=created.key.id)
    _print_created(created, as_json)


@app.command(epilog="Example: dray keys revoke k3v9x0ab12")
def revoke(key_id: KeyId, as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """Revoke a key. All routers refuse it within a second."""
    with teams_redis(config, state_dir) as client:
        revoked = registry.revoke_key(client, key_id)
    audit(config, state_dir, "key.revoke", key_id, team=revoked.key.team)
    print_done(revoked.key.public_fields() | {"kept": revoked.kept}, f"revoked {key_id}", as_json)
    if not revoked.kept:
        full = "the disk of data_dir is full, so this is not kept: after a restart the key is valid again"
        err.print(f"warning: {full}. Make room; `dray status` says when it is kept.", highlight=False)


@app.command("remove", epilog="Example: dray keys remove k3v9x0ab12")
def remove_key(key_id: KeyId, as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """Delete the record of a key that has expired or was revoked."""
    with teams_redis(config, state_dir) as client:
        registry.remove_key(client, key_id)
    audit(config, state_dir, "key.remove", key_id)
    print_done({"id": key_id}, f"removed {key_id}", as_json)


@app.command(epilog="Example: dray keys disable --yes")
def disable(
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    as_json: AsJson = False,
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
        question = "Delete every key, and let every program on this machine use Dray without one?"
        typer.confirm(question, abort=True, err=as_json)
    with teams_redis(config, state_dir) as client:
        count = unlock(client)
    audit(config, state_dir, "keys.disable", keys=count)
    print_done({"keys": count}, f"deleted {plural(count, 'key')}; no key is needed any more", as_json)


@app.command(epilog="Example: dray keys usage --team support --days 7")
def usage(
    team: Annotated[str | None, typer.Option(help="Only this team.")] = None,
    days: Annotated[int, typer.Option(min=1, max=400, help="Number of days, today included.")] = 30,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Show usage by day, team and model, and what the answer cache saved."""
    prices = current_prices(config, state_dir)
    with teams_redis(config, state_dir) as client:
        rows = usage_records.read_rows(client, days, team)
        known = [each for each in registry.read_registry(client).teams.values() if team in (None, each.name)]
        budgets = read_budgets(client, known, prices)
    if as_json:
        print_json([msgspec.to_builtins(row) for row in rows])
        return
    out.print(usage_table(rows))
    for budget in budgets:
        if budget.state != "ok":
            err.print(f"{budget.state}: {budget.team} has used {budget.used:.0%} of its month", highlight=False)


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
