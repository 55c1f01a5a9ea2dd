"""`dray warm`."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cluster.commands.console import AsJson, Config, Key, StateDir, err, fail, out, print_json, running_record
from cluster.warm import WarmResult, read_lines, warm

_MAX_SHOWN = 20


def warm_cache(
    file: Annotated[Path, typer.Argument(help='JSON Lines: "question", {"question": ...} or whole chat requests.')],
    url: Annotated[str | None, typer.Option(help="Base URL of another server, ending in /v1.")] = None,
    key: Key = "",
    model: Annotated[str | None, typer.Option(help="Model to ask. Default: the first one served.")] = None,
    at_a_time: Annotated[int, typer.Option(min=1, max=256, help="Concurrent requests.")] = 4,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Fill the answer cache with questions from a file, at lower priority than people's requests.

    An interrupted run can simply be started again: cached answers are skipped. Exit code 1: some have no answer.
    """
    if url is None or model is None:
        record = running_record(config, state_dir)
        url, model = url or record.url, model or record.models[0]
    try:
        lines = list(read_lines(file, model))
    except (OSError, UnicodeDecodeError) as error:
        raise fail(f"{file}: {error}") from None
    if not lines:
        raise fail(f"{file} holds no questions")
    results: list[WarmResult] = []
    columns = (TextColumn("warming"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as progress:
        bar = progress.add_task("warming", total=len(lines))

        def on_result(result: WarmResult) -> None:
            results.append(result)
            progress.advance(bar)

        try:
            asyncio.run(warm(url, key, iter(lines), at_a_time, on_result))
        except KeyboardInterrupt:
            progress.stop()
            err.print("stopped; start it again to continue")
    _print_report(results, len(lines), as_json)
    if len(results) < len(lines) or any(result.outcome == "failed" for result in results):
        raise typer.Exit(1)


def _print_report(results: list[WarmResult], total: int, as_json: bool) -> None:
    counts = Counter(result.outcome for result in results)
    problems = sorted((result for result in results if result.reason), key=lambda result: result.line)
    if as_json:
        numbers = {outcome.replace(" ", "_"): count for outcome, count in counts.items()}
        lines = [{"line": result.line, "outcome": result.outcome, "why": result.reason} for result in problems]
        print_json({**numbers, "left": total - len(results), "lines": lines})
        return
    summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    out.print(summary or "no question was asked", highlight=False)
    for result in problems[:_MAX_SHOWN]:
        out.print(f"  line {result.line} {result.outcome}: {escape(result.reason)}", highlight=False)
    if len(problems) > _MAX_SHOWN:
        out.print(f"  and {len(problems) - _MAX_SHOWN} more", highlight=False)
