"""`dray bench`: the options, and the measurement with its progress."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cluster.bench.cost import DEFAULT, AssumptionError, Assumptions, parse_assumption, read_assumptions
from cluster.bench.lengths import Lengths, parse_lengths
from cluster.commands.bench_report import report_costs, report_results
from cluster.commands.console import Config, StateDir, err, fail, running_record

if TYPE_CHECKING:
    from cluster.bench.client import Outcome
    from cluster.bench.compare import ComparisonResults, Plan
    from cluster.bench.run import Run
    from cluster.bench.workload import Conversation

_INTERRUPTED = 130


def bench(
    url: Annotated[
        list[str] | None,
        typer.Option(help="Base URL ending in /v1; repeat it to compare servers. Default: the running Dray."),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="API key: one for all servers, or one per --url, in order.", envvar="OPENAI_API_KEY"),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Model: one for all servers, or one per --url. Default: the first one served."),
    ] = None,
    concurrency: Annotated[str, typer.Option(help="Concurrent requests; several loads as 1,4,16.")] = "",
    rate: Annotated[
        str, typer.Option(help="Instead of --concurrency: requests per second (Poisson arrivals); 0.5,1,2.")
    ] = "",
    prompt: Annotated[str, typer.Option(help="Prompt tokens: 200, 100-400 or lognormal:200:0.6.")] = "100",
    output: Annotated[str, typer.Option(help="Completion tokens, in the same forms.")] = "64",
    repeated: Annotated[float, typer.Option(min=0, max=1, help="Share of requests that repeat a recent question.")] = 0,
    prefix: Annotated[int, typer.Option(min=0, help="Tokens of a shared system prompt.")] = 0,
    prefixes: Annotated[int, typer.Option(min=1, help="Number of different system prompts.")] = 1,
    turns: Annotated[int, typer.Option(min=1, help="Requests per conversation.")] = 1,
    stream: Annotated[bool, typer.Option(help="Request streams; without them, there is no TTFT.")] = True,
    ignore_eos: Annotated[bool, typer.Option(help="Request answers of the full length.")] = True,
    extra: Annotated[str, typer.Option(help="Further request fields as JSON: '{\"top_p\": 0.9}'.")] = "",
    seconds: Annotated[float, typer.Option(min=1, help="Seconds per load and round.")] = 20,
    requests: Annotated[int, typer.Option(min=0, help="Instead of --seconds: requests per load and round.")] = 0,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds per load before measuring starts.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds per load; servers alternate.")] = 1,
    seed: Annotated[int, typer.Option(help="Random seed of lengths and arrivals.")] = 0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds per request.")] = 600,
    to_json: Annotated[
        Path | None, typer.Option("--json", help="Write all results to this file as JSON; - prints them.")
    ] = None,
    chart: Annotated[Path | None, typer.Option(help="Draw latency over throughput: .svg or .png.")] = None,
    log: Annotated[
        Path | None, typer.Option(help="Write one line of JSON per request; `dray plan --trace` reads it.")
    ] = None,
    cost: Annotated[bool, typer.Option(help="Compare the cost of a million tokens with a GPU server.")] = False,
    tokens_per_s: Annotated[
        float, typer.Option(min=0, help="With --cost: tokens/s of one PC, instead of measuring.")
    ] = 0,
    assume: Annotated[
        list[str] | None, typer.Option(help="With --cost: an assumption, such as gpu.price=15000.")
    ] = None,
    assumptions: Annotated[Path | None, typer.Option(help="With --cost: a YAML file of assumptions.")] = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Measure the speed of Dray or any other OpenAI-compatible server.

    With several --url, each load is measured on all servers in alternating rounds and compared as ratios.
    """
    if not cost and (tokens_per_s or assume or assumptions):
        raise fail("--tokens-per-s, --assume and --assumptions need --cost")
    assumed = read_all_assumptions(assumptions, assume or [])
    if cost and tokens_per_s:
        report_costs(assumed.changed({"pc.tokens_per_s": tokens_per_s}), to_json)
        return
    # Imported here because no other command needs the HTTP client.
    from cluster.bench.compare import Plan, Server
    from cluster.bench.load import Load, RunLength
    from cluster.bench.workload import Workload

    if rate and concurrency:
        raise fail("--rate and --concurrency exclude each other")
    values = _numbers(rate or concurrency or "1,4,16", whole=not rate)
    urls = [base.rstrip("/") for base in url or [running_record(config, state_dir).url]]
    keys, models = _per_server(key, urls, "--key"), _per_server(model, urls, "--model")
    plan = Plan(
        servers=tuple(map(Server, urls, keys, models)),
        loads=tuple(Load("rate" if rate else "concurrency", value) for value in values),
        workload=Workload(_lengths(prompt), _lengths(output), repeated, prefix, prefixes, turns),
        length=RunLength(seconds, requests, warmup),
        rounds=rounds,
        seed=seed,
        stream=stream,
        timeout_s=timeout,
        extra=_fields(extra) | ({"ignore_eos": True} if ignore_eos else {}),
    )
    if chart is not None and chart.suffix not in (".svg", ".png"):
        raise fail(f"a chart is an .svg or .png file, got {chart}")
    with ExitStack() as files:
        results, complete = _measure(plan, files.enter_context(_writable(log)) if log else None)
    report_results(plan, results, to_json, chart, assumed if cost else None)
    if not complete:
        raise typer.Exit(_INTERRUPTED)
    if not any(stats.ok for measured in results.rounds.values() for stats in measured):
        raise typer.Exit(1)


def _measure(plan: "Plan", log_file: TextIO | None) -> tuple["ComparisonResults", bool]:
    """Measures, showing progress. Returns the results and whether the measurement ran to its end."""
    from cluster.bench.compare import ComparisonResults, measure
    from cluster.bench.log import RequestLog
    from cluster.bench.target import TargetError

    results = ComparisonResults([server.url for server in plan.servers], [])
    log = RequestLog(log_file, plan.workload.prefix) if log_file else None
    columns = (TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn(), TimeElapsedColumn())
    figures = TextColumn("{task.fields[figures]}")
    # Drawn rarely: time that the client spends on it would count as the server's.
    with Progress(*columns, figures, console=err, transient=True, refresh_per_second=2) as progress:
        bar = progress.add_task("measuring", total=None, figures="")

        def on_run(server: int, number: int, run: "Run") -> Callable[["Conversation", "Outcome"], None]:
            stats, length = run.stats, plan.length
            where = f", {plan.servers[server].url}" if len(plan.servers) > 1 else ""
            round_ = f", round {number + 1} of {plan.rounds}" if plan.rounds > 1 else ""
            total = length.requests or length.seconds
            progress.update(bar, description=f"{stats.load}{where}{round_}", total=total, completed=0)
            if log is not None:
                log.begin(stats.began - length.warmup_s)

            def on_done(conversation: "Conversation", outcome: "Outcome") -> None:
                if log is not None:
                    log.write(conversation, outcome, server, stats.load)
                elapsed = outcome.ended - stats.began
                rate = stats.tokens / elapsed if elapsed > 0 else 0.0
                figures = f"{rate:.1f} tokens/s, {stats.ok} done, {run.in_flight} in flight, {stats.failed} failed"
                done = stats.ok + stats.failed if length.requests else max(0.0, elapsed)
                progress.update(bar, completed=min(done, total), figures=figures)

            return on_done

        try:
            asyncio.run(measure(plan, results, on_run))
        except TargetError as error:
            progress.stop()
            raise fail(str(error)) from None
        except KeyboardInterrupt:
            results.drop_empty()
            progress.stop()
            err.print("stopped; these are the results so far")
            return results, False
    return results, True


def read_all_assumptions(file: Path | None, changes: Sequence[str]) -> Assumptions:
    """The default assumptions, changed by a file and by options. Ends the command where one is impossible."""
    try:
        assumptions = DEFAULT.changed(read_assumptions(file)) if file else DEFAULT
        return assumptions.changed(dict(map(parse_assumption, changes)))
    except (AssumptionError, OSError) as error:
        raise fail(str(error)) from None


def _writable(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise fail(str(error)) from None


def _per_server(values: Sequence[str] | None, urls: Sequence[str], option: str) -> list[str]:
    values = values or [""]
    if len(values) == 1:
        return [values[0]] * len(urls)
    if len(values) != len(urls):
        raise fail(f"{option} is given {len(values)} times for {len(urls)} servers; give it once, or once for each")
    return list(values)


def _numbers(text: str, *, whole: bool) -> list[float]:
    try:
        numbers = [float(int(part)) if whole else float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0:
        raise fail(f"{text!r} is no list of loads: write it like {'1,4,16' if whole else '0.5,1,2'}")
    return numbers


def _lengths(text: str) -> Lengths:
    try:
        return parse_lengths(text)
    except ValueError as error:
        raise fail(str(error)) from None


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text or "{}")
    except ValueError as error:
        raise fail(f"--extra is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise fail("--extra must be a JSON object")
    return fields
