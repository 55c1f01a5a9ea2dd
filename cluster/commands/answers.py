"""`dray answers`: curated answers, which people have approved."""

import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from cluster.audit import Value
from cluster.commands.auditing import audit, user_name
from cluster.commands.console import (
    AsJson,
    Config,
    StateDir,
    fail,
    load_settings,
    out,
    print_done,
    print_json,
    printable,
    redis_client,
    running_record,
)
from cluster.commands.teams import teams_redis
from cluster.records import curated
from cluster.records.answer_files import jsonl, read_answers, unix_time
from cluster.records.client import BlockingRedis
from cluster.records.curated import CuratedAnswer, ListedAnswer
from cluster.records.pinning import pinned
from cluster.tables import DataTable
from cluster.units import plural

app = typer.Typer(
    help="Manage curated answers: people have approved them, and they are given before any other.",
    no_args_is_help=True,
    epilog="Example: dray answers import faq.csv --namespace team.support",
)

Id = Annotated[str, typer.Argument(help="Id of the answer, as `dray answers list` shows it.")]
Namespace = Annotated[str, typer.Option(help="Namespace; a team's is team.NAME.")]
Author = Annotated[str, typer.Option(help="Who approved it. Default: the user of this machine.")]
ValidUntil = Annotated[str, typer.Option(help="Last day or moment, in UTC: 2026-12-31. Default: it never expires.")]
_SHOWN = 80
_PER_ENTRY = 1000
"""Ids in one entry of the audit log."""


@app.command("import", epilog="Example: dray answers import faq.csv --namespace team.support --author ann")
def import_answers(
    file: Annotated[
        Path, typer.Argument(help="JSON Lines or CSV: question, answer, namespace, model, valid-until, author.")
    ],
    namespace: Namespace = "",
    author: Author = "",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Add the answers in a file, in place of those to the same questions. One wrong line, and nothing is added."""
    namespace = namespace or load_settings(config, state_dir=state_dir).settings.cache.namespace
    with teams_redis(config, state_dir) as client:
        try:
            answers = read_answers(file, namespace, author or user_name())
        except OSError as error:
            raise fail(f"{file}: {error.strerror}") from None
        if not answers:
            raise fail(f"{file} holds no answers")
        count = curated.put_answers(client, answers)
    for start in range(0, len(answers), _PER_ENTRY):
        part = answers[start : start + _PER_ENTRY]
        authors = sorted({answer.author for answer in part})
        audit(config, state_dir, "answer.import", file.name, authors=authors, ids=[answer.id for answer in part])
    done = {"answers": count, "ids": list(dict.fromkeys(answer.id for answer in answers))}
    print_done(done, f"imported {plural(count, 'answer')}", as_json)


@app.command("export", epilog="Example: dray answers export --namespace team.support > answers.jsonl")
def export_answers(
    namespace: Namespace = "",
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Print the answers as JSON Lines, for `dray answers import`."""
    with teams_redis(config, state_dir) as client:
        text = jsonl(curated.list_answers(client, namespace))
    sys.stdout.buffer.write(text.encode())  # UTF-8 whatever the terminal's encoding is


@app.command("list", epilog="Example: dray answers list --search VPN")
def list_answers(
    search: Annotated[str, typer.Option(help="Only those whose question or answer contains this text.")] = "",
    namespace: Namespace = "",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """List curated answers, and say which were made for a model that is no longer served."""
    with teams_redis(config, state_dir) as client:
        served = curated.served_models(client)
        listed = [ListedAnswer.of(answer, served) for answer in curated.list_answers(client, namespace, search)]
    if as_json:
        print_json([msgspec.to_builtins(answer) for answer in listed])
        return
    out.print(answers_table(listed))


def answers_table(listed: Iterable[ListedAnswer]) -> DataTable:
    """Curated answers, with what may be wrong with each."""
    columns = ("id", "namespace", "question", "answer", "model", "author", "changed", "notes")
    table = DataTable(*columns, drop=("changed", "model", "answer"), sentences=("question", "answer"))
    for answer in listed:
        changed = datetime.fromtimestamp(answer.changed).isoformat(sep=" ", timespec="minutes")
        notes = [note for note, holds in (("older model", answer.outdated), ("expired", answer.expired)) if holds]
        texts = (answer.namespace, _short(answer.question), _short(answer.answer), answer.model or "all", answer.author)
        table.add_row(answer.id, *map(printable, texts), changed, ", ".join(notes))
    return table


@app.command(epilog="Example: dray answers pin 0f3a... (an answer's X-Dray-Cache-Key)")
def pin(
    key: Annotated[str, typer.Argument(help="The X-Dray-Cache-Key of a cached answer, or its key in Redis.")],
    answer: Annotated[str, typer.Option(help="A correction, in place of its text.")] = "",
    author: Author = "",
    valid_until: ValidUntil = "",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Make a cached answer a curated one, of the same namespace; with --answer, correct it."""
    url = load_settings(config, state_dir=state_dir).settings.cache.url or running_record(config, state_dir).redis
    if not url:
        raise fail("the answer cache is off (cache.enabled)")
    with teams_redis(config, state_dir) as client, redis_client(url) as cache:
        added = pinned(cache, key, author or user_name(), unix_time(valid_until), answer)
        curated.put_answers(client, [added])
        done = listed_fields(client, added)
    _audit(config, state_dir, "answer.pin", added, key=key, corrected=bool(answer.strip()))
    print_done(done, f"pinned as {added.id}", as_json)


@app.command(epilog="Example: dray answers edit 0f3a... --answer 'Since May: port 8443.'")
def edit(
    number: Id,
    question: Annotated[str | None, typer.Option(help="Another question; it gives the answer another id.")] = None,
    answer: Annotated[str | None, typer.Option(help="Another answer.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Another namespace.")] = None,
    model: Annotated[str | None, typer.Option(help="The only model that it answers for; '': all.")] = None,
    valid_until: Annotated[str | None, typer.Option(help="Last day or moment, in UTC; '': it never expires.")] = None,
    author: Author = "",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Change a curated answer. Options that are not given leave their values unchanged, except for the author."""
    given = {"question": question, "answer": answer, "namespace": namespace, "model": model}
    changes: dict[str, str | float] = {name: value for name, value in given.items() if value is not None}
    with teams_redis(config, state_dir) as client:
        if valid_until is not None:
            changes["valid_until"] = unix_time(valid_until)
        edited = curated.edit_answer(client, number, {**changes, "author": author or user_name()})
        done = listed_fields(client, edited)
    _audit(config, state_dir, "answer.edit", edited, before=number)
    print_done(done, f"changed {edited.id}", as_json)


@app.command(epilog="Example: dray answers remove 0f3a...")
def remove(number: Id, as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """Remove a curated answer. No router gives it a second later."""
    with teams_redis(config, state_dir) as client:
        removed = curated.remove_answer(client, number)
        done = listed_fields(client, removed)
    _audit(config, state_dir, "answer.remove", removed)
    print_done(done, f"removed {number}", as_json)


def listed_fields(client: BlockingRedis, answer: CuratedAnswer) -> dict[str, Any]:
    """A curated answer as `dray answers list --json` has it."""
    fields: dict[str, Any] = msgspec.to_builtins(ListedAnswer.of(answer, curated.served_models(client)))
    return fields


def _audit(config: Config, state_dir: StateDir, action: str, answer: CuratedAnswer, **more: Value) -> None:
    audit(config, state_dir, action, answer.id, namespace=answer.namespace, author=answer.author, **more)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
