"""`dray logs`."""

import json
import time
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from cluster.commands.console import Config, StateDir, fail, load_settings, out, printable
from cluster.logs import LogLine, LogReader
from cluster.private_files import check_private_folder

_POLL_S = 0.3
_SHOWN_WITH_FOLLOW = 50
_STYLES = {"warning": "yellow", "error": "red", "critical": "red"}
_OWN_FIELDS = {"time", "level", "logger", "message", "exception"}


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")] = False,
    lines: Annotated[
        int | None,
        typer.Option("--lines", "-n", min=0, help="Only the last lines. Default: all; with --follow, the last 50."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line, with all fields.")] = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Show the log files of the Dray on this machine in the order of time: its own, Redis' and Ray's.

    `dray down` removes them.
    """
    folder = load_settings(config, state_dir=state_dir).settings.state_dir
    check_private_folder(folder)
    reader = LogReader(folder)
    shown = lines if lines is not None else _SHOWN_WITH_FOLLOW if follow else None
    first = deque(reader.lines(), shown) if shown is not None else reader.lines()
    count = _print(first, as_json)
    if not count and not follow and lines != 0:
        raise fail(f"there are no log files in {folder}; they exist from `dray up` to `dray down`")
    try:
        while follow:
            time.sleep(_POLL_S)
            _print(reader.lines(), as_json)
    except KeyboardInterrupt:
        return


def _print(lines: Iterable[LogLine], as_json: bool) -> int:
    """Prints the lines; returns how many there were."""
    count = 0
    for line in lines:
        text = Text(_as_json(line)) if as_json else readable(line)
        out.print(text, soft_wrap=True, highlight=False)
        count += 1
    return count


def _as_json(line: LogLine) -> str:
    if line.fields is not None:
        return printable(line.text)
    when = datetime.fromtimestamp(line.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": when, "file": line.file, "message": line.text}, ensure_ascii=True)


def readable(line: LogLine) -> Text:
    """A line for people: local time, level and message, and the fields of Dray's own lines; else what the line says."""
    when = datetime.fromtimestamp(line.at).isoformat(sep=" ", timespec="milliseconds")
    fields = line.fields
    if fields is None:
        return Text.assemble((f"{when} ", "dim"), (f"{line.file}: ", "dim"), printable(line.text))
    level = str(fields.get("level", ""))
    more = " ".join(f"{name}={_value(value)}" for name, value in fields.items() if name not in _OWN_FIELDS)
    text = Text.assemble(
        (f"{when} ", "dim"),
        (f"{level:7} ", _STYLES.get(level, "")),
        printable(str(fields.get("message", ""))),
        (f"  {printable(more)}" if more else "", "dim"),
    )
    if exception := fields.get("exception"):
        text.append("\n" + printable(str(exception)), "dim")
    return text


def _value(value: object) -> str:
    return value if isinstance(value, str) and value and " " not in value else json.dumps(value, ensure_ascii=False)
