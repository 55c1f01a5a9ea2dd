"""`dray batch`: many requests from a file, answered when the engines have time."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.batch_client import BatchClient
from cluster.client import ServerError
from cluster.commands.console import (
    AsJson,
    Config,
    Key,
    StateDir,
    err,
    fail,
    out,
    print_json,
    printable,
    running_record,
)
from cluster.tables import DataTable

app = typer.Typer(
    help="Answer many requests from a file when the engines have time.",
    no_args_is_help=True,
    epilog="Example: dray batch submit requests.jsonl",
)

Id = Annotated[str, typer.Argument(help="Id of the batch, as `dray batch list` shows it.")]
Url = Annotated[str | None, typer.Option(help="Base URL of another server, ending in /v1.")]


@contextmanager
def _client(url: str | None, key: str, config: Config, state_dir: StateDir) -> Iterator[BatchClient]:
    url = url or running_record(config, state_dir).url
    try:
        with BatchClient(url, key) as client:
            yield client
    except ServerError as error:
        raise fail(str(error)) from None


@app.command(epilog="Example: dray batch submit requests.jsonl --endpoint /v1/embeddings --window 8h")
def submit(
    file: Annotated[Path, typer.Argument(help="JSON Lines: custom_id, method, url, body.")],
    endpoint: Annotated[str, typer.Option(help="The `url` of all lines.")] = "/v1/chat/completions",
    window: Annotated[str, typer.Option(help="How long it may take: minutes, hours or days (30m, 24h, 7d).")] = "24h",
    url: Url = None,
    key: Key = "",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Upload a file and start a batch. People's requests go before it."""
    with _client(url, key, config, state_dir) as client:
        try:
            with err.status("uploading"):
                batch = client.submit(file, endpoint, window)
        except OSError as error:
            raise fail(f"{file}: {error.strerror}") from None
    _print(batch, as_json)


@app.command("list", epilog="Example: dray batch list")
def list_batches(
    url: Url = None, key: Key = "", as_json: AsJson = False, state_dir: StateDir = None, config: Config = None
) -> None:
    """List your team's batches, the newest first; with an admin key, those of all teams."""
    with _client(url, key, config, state_dir) as client:
        batches = client.batches()
    if as_json:
        print_json(batches)
        return
    out.print(batches_table(batches))


def batches_table(batches: Iterable[dict[str, Any]]) -> DataTable:
    """Batches, as the API has them."""
    counted = ("completed", "failed", "total")
    heads = ("id", "owner", "status", *counted, "created")
    table = DataTable(*heads, right=counted, drop=("created", "owner", "total"))
    for batch in batches:
        counts = batch["request_counts"]
        numbers = (str(counts[name]) for name in counted)
        table.add_row(
            batch["id"], printable(batch.get("owner", "")), batch["status"], *numbers, _time(batch["created_at"])
        )
    return table


@app.command(epilog="Example: dray batch show batch_0f3a...")
def show(
    batch_id: Id,
    url: Url = None,
    key: Key = "",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Show how far a batch is. Exit code 1: it has failed, or not all its lines were answered."""
    with _client(url, key, config, state_dir) as client:
        batch = client.show(batch_id)
    _print(batch, as_json)
    if batch["status"] in ("failed", "expired", "cancelled") or batch["request_counts"]["failed"]:
        raise typer.Exit(1)


@app.command(epilog="Example: dray batch cancel batch_0f3a...")
def cancel(
    batch_id: Id,
    url: Url = None,
    key: Key = "",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Cancel a batch. What is answered already can be downloaded."""
    with _client(url, key, config, state_dir) as client:
        _print(client.cancel(batch_id), as_json)


@app.command(epilog="Example: dray batch download batch_0f3a... --to answers.jsonl")
def download(
    batch_id: Id,
    to: Annotated[Path | None, typer.Option(help="File to write. Default: standard output.")] = None,
    errors: Annotated[bool, typer.Option("--errors", help="The lines that failed, in place of the answers.")] = False,
    url: Url = None,
    key: Key = "",
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Download the answers of a batch as JSON Lines."""
    with _client(url, key, config, state_dir) as client:
        batch = client.show(batch_id)
        file_id = batch["error_file_id" if errors else "output_file_id"]
        if file_id is None:
            raise fail(f"the batch has no {'errors' if errors else 'answers'}; its status is {batch['status']}")
        try:
            if to is None:
                for block in client.content(file_id):
                    sys.stdout.buffer.write(block)
                return
            with to.open("wb") as file:
                for block in client.content(file_id):
                    file.write(block)
        except OSError as error:
            raise fail(f"{to or 'standard output'}: {error.strerror}") from None
    err.print(f"wrote {to}", highlight=False)


def _print(batch: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(batch)
        return
    counts = batch["request_counts"]
    out.print(f"{batch['id']}: {batch['status']}", highlight=False, soft_wrap=True)
    if counts["total"]:
        line = f"{counts['completed']} of {counts['total']} lines answered, {counts['failed']} failed"
        out.print(line, highlight=False)
    out.print(f"created {_time(batch['created_at'])}, expires {_time(batch['expires_at'])}", highlight=False)
    for problem in (batch["errors"] or {"data": []})["data"]:
        place = f"line {problem['line']}: " if problem["line"] else ""
        out.print(f"  {place}{printable(problem['message'])}", markup=False, highlight=False, soft_wrap=True)


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="minutes")
