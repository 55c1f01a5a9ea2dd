"""`dray warm`."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cluster.commands.console import AsJson, Config, Key, StateDir, err, fail, found, out
from cluster.warm import Warmed, read_lines, warm

_SHOWN = 20


def warm_cache(
    file: Annotated[Path, typer.Argument(help='JSON Lines: "question", {"question": ...} or whole chat requests.')],
    url: Annotated[str | None, typer.Option(help="Base URL of another server, ending in /v1.")] = None,
    key: Key = "",
    model: Annotated[str | None, typer.Option(help="Model to ask; the first that is served if not given.")] = None,
    at_a_time: Annotated[int, typer.Option(min=1, max=256, help="Questions at a time.")] = 4,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Have questions answered before anyone asks; people who ask meanwhile go first.

    Begun again, it goes on: what is in the cache already is left alone. Exit code 1: not all were answered.
    """
    if url is None or model is None:
        record = found(config, state_dir)
        url, model = url or record.url, model or record.models[0]
    try:
        lines = list(read_lines(file, model))
    except (OSError, UnicodeDecodeError) as error:
        raise fail(f"{file}: {error}") from None
    if not lines:
        raise fail(f"{file} holds no questions")
    done: list[Warmed] = []
    columns = (TextColumn("warming"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as progress:
        bar = progress.add_task("warming", total=len(lines))

        def on_done(one: Warmed) -> None:
            done.append(one)
            progress.advance(bar)

        try:
            asyncio.run(warm(url, key, iter(lines), at_a_time, on_done))
        except KeyboardInterrupt:
            progress.stop()
            err.print("stopped; begin it again to go on")
    _report(done, len(lines), as_json)
    if len(done) < len(lines) or any(one.outcome == "failed" for one in done):
        raise typer.Exit(1)


def _report(done: list[Warmed], total: int, as_json: bool) -> None:
    counts = Counter(one.outcome for one in done)
    bad = sorted((one for one in done if one.why), key=lambda one: one.line)
    if as_json:
        problems = [{"line": one.line, "outcome": one.outcome, "why": one.why} for one in bad]
        left = total - len(done)
        out.print_json(
            data={**{name.replace(" ", "_"): n for name, n in counts.items()}, "left": left, "lines": problems}
        )
        return
    out.print(", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing was asked", highlight=False)
    for one in bad[:_SHOWN]:
        out.print(f"  line {one.line} {one.outcome}: {escape(one.why)}", highlight=False)
    if len(bad) > _SHOWN:
        out.print(f"  and {len(bad) - _SHOWN} more", highlight=False)
