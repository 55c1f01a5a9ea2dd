"""`dray feedback`: what people say of answers."""

import sys
from collections.abc import Iterable
from typing import Annotated

import msgspec
import typer

from cluster.commands.answers import Author, listed_fields
from cluster.commands.auditing import audit, user_name
from cluster.commands.console import AsJson, Config, StateDir, out, print_done, print_json, printable
from cluster.commands.teams import teams_redis
from cluster.records import feedback
from cluster.records.feedback import ListedFeedback
from cluster.tables import DataTable

app = typer.Typer(
    help="Show what people say of answers, and make curated answers of their corrections.",
    no_args_is_help=True,
    epilog="Example: dray feedback list --team support",
)

Team = Annotated[str | None, typer.Option(help="Only this team's.")]
_SHOWN = 60
_COLUMNS = ("id", "team", "down", "up", "asked", "question", "answer", "correction or reason", "notes")


@app.command("list", epilog="Example: dray feedback list --team support --json")
def list_feedback(
    team: Team = None, as_json: AsJson = False, state_dir: StateDir = None, config: Config = None
) -> None:
    """List answers that people voted on: most voted down first, then most asked; accepted ones last."""
    listed = _read(team, state_dir, config)
    if as_json:
        print_json([msgspec.to_builtins(one) for one in listed])
        return
    out.print(feedback_table(listed))


def feedback_table(listed: Iterable[ListedFeedback]) -> DataTable:
    """Answers with their votes."""
    table = DataTable(*_COLUMNS, drop=("asked", "answer"), right=_COLUMNS[2:5], sentences=_COLUMNS[5:8])
    for one in listed:
        note = one.correction or next(iter(one.reasons), "")
        texts = (_short(text) for text in (one.question, one.answer, note))
        counts = (str(one.down), str(one.up), str(one.asked))
        table.add_row(one.id, one.team, *counts, *texts, "accepted" if one.accepted else "")
    return table


@app.command(epilog="Example: dray feedback accept 0f3a... --answer 'Since May: port 8443.'")
def accept(
    number: Annotated[str, typer.Argument(help="Id of the feedback, as `dray feedback list` shows it.")],
    answer: Annotated[str, typer.Option(help="The right answer. Default: the correction that somebody wrote.")] = "",
    author: Author = "",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Make a curated answer of a correction: from now on everybody in the namespace gets it."""
    with teams_redis(config, state_dir) as client:
        added = feedback.accept(client, number, author or user_name(), answer)
        done = listed_fields(client, added)
    about = {"namespace": added.namespace, "author": added.author, "feedback": number}
    audit(config, state_dir, "feedback.accept", added.id, **about)
    print_done(done, f"curated as {added.id}", as_json)


@app.command(epilog="Example: dray feedback export --team support > training.jsonl")
def export(team: Team = None, state_dir: StateDir = None, config: Config = None) -> None:
    """Print corrected and well-liked answers as JSON Lines, in OpenAI's format for fine-tuning."""
    text = feedback.training_lines(_read(team, state_dir, config))
    sys.stdout.buffer.write(text.encode())  # UTF-8 whatever the terminal's encoding is


def _read(team: str | None, state_dir: StateDir, config: Config) -> list[ListedFeedback]:
    with teams_redis(config, state_dir) as client:
        return feedback.list_feedback(client, team)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return printable(line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…")
