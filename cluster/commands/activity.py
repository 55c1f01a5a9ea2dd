"""`dray requests` and `dray errors`."""

import time
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated

import msgspec
import typer

from cluster.commands.console import AsJson, Config, StateDir, out, print_json, printable
from cluster.commands.teams import teams_redis
from cluster.records.activity import read_activity
from cluster.reports.activity import ShownError, ShownRequest, last_errors, last_requests
from cluster.tables import DataTable


def requests(
    team: Annotated[str, typer.Option(help="Only this team's.")] = "",
    model: Annotated[str, typer.Option(help="Only those of this model.")] = "",
    errors: Annotated[bool, typer.Option("--errors", help="Only those that failed.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 30,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Show the last requests of all routers, newest first: who asked what model, how it ended and how long it took.

    Each router keeps its last 200, for an hour after the last one; of their text nothing,
    unless admin.request_texts_s is set.
    """
    with teams_redis(config, state_dir) as client:
        shown = last_requests(read_activity(client, time.time()), limit, team=team, model=model, errors=errors)
    if as_json:
        print_json([msgspec.to_builtins(request) for request in shown])
        return
    out.print(requests_table(shown))


def requests_table(shown: Iterable[ShownRequest]) -> DataTable:
    """Requests, without their texts."""
    figures = ("status", "queue s", "first token s", "total s", "prompt", "completion")
    heads = ("time", "id", "team", "model", "API", "cache", *figures)
    table = DataTable(*heads, right=figures, drop=("API", "queue s", "model", "prompt", "id"))
    for request in shown:
        table.add_row(
            f"{datetime.fromtimestamp(request.time):%H:%M:%S}",
            *map(printable, (request.id, request.team, request.model, request.api)),
            request.cache,
            _status(request),
            _seconds(request.queue_s),
            _seconds(request.first_token_s),
            _seconds(request.total_s),
            str(request.prompt),
            str(request.completion),
        )
    return table


def show_errors(as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """Show the errors of the last hour by kind, and what to do about each."""
    now = time.time()
    with teams_redis(config, state_dir) as client:
        found = last_errors(read_activity(client, now), now)
    if as_json:
        print_json([msgspec.to_builtins(error) for error in found])
        return
    out.print(errors_table(found))


def errors_table(found: Iterable[ShownError]) -> DataTable:
    """Errors by kind."""
    heads = ("count", "status", "code", "team", "model", "last", "advice")
    table = DataTable(*heads, right=("count", "status"), sentences=("advice",), drop=("last", "model", "team"))
    for error in found:
        names = map(printable, (error.code, error.team, error.model))
        last = f"{datetime.fromtimestamp(error.last):%H:%M:%S}"
        table.add_row(str(error.count), str(error.status), *names, last, error.advice)
    return table


def _status(request: ShownRequest) -> str:
    return f"{request.status} {request.code}".strip()


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3f}"
