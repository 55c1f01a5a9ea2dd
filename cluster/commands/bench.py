"""`dray bench`."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cluster.bench.cost import DEFAULT, MEASURED, AssumptionError, Assumptions, parse_assumption, read_assumptions
from cluster.bench.lengths import Lengths, parse_lengths
from cluster.commands.console import Config, StateDir, err, fail, found, out

if TYPE_CHECKING:
    from cluster.bench.client import Outcome
    from cluster.bench.compare import ComparisonResults, Plan
    from cluster.bench.run import Run
    from cluster.bench.workload import Conversation

_INTERRUPTED = 130
_SHOWN_ERRORS = 5


def bench(
    url: Annotated[
        list[str] | None, typer.Option(help="Base URL ending in /v1; several are compared. Dray's own if not given.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="API key; one for all, or one for each --url, in order.", envvar="OPENAI_API_KEY"),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Model; one for all, or one for each --url. The first served if not given.")
    ] = None,
    concurrency: Annotated[str, typer.Option(help="Requests at a time, several loads as 1,4,16.")] = "",
    rate: Annotated[str, typer.Option(help="Requests a second (Poisson) in place of --concurrency; 0.5,1,2.")] = "",
    prompt: Annotated[str, typer.Option(help="Tokens: 200, 100-400 or lognormal:200:0.6.")] = "100",
    output: Annotated[str, typer.Option(help="Tokens of each answer, in the same ways.")] = "64",
    repeated: Annotated[float, typer.Option(min=0, max=1, help="Share that asks one of the last questions again.")] = 0,
    prefix: Annotated[int, typer.Option(min=0, help="Tokens of a shared system prompt.")] = 0,
    prefixes: Annotated[int, typer.Option(min=1, help="So many of them.")] = 1,
    turns: Annotated[int, typer.Option(min=1, help="Requests of each conversation.")] = 1,
    stream: Annotated[bool, typer.Option(help="Ask for streams; whole answers have no TTFT.")] = True,
    ignore_eos: Annotated[bool, typer.Option(help="Ask for answers that do not end before their length.")] = True,
    extra: Annotated[str, typer.Option(help="Further fields of each request, as JSON: '{\"top_p\": 0.9}'.")] = "",
    seconds: Annotated[float, typer.Option(min=1, help="Of each load in each round.")] = 20,
    requests: Annotated[int, typer.Option(min=0, help="So many requests in place of --seconds.")] = 0,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds of each load before it counts.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each load is measured, servers in turn.")] = 1,
    seed: Annotated[int, typer.Option(help="Draws lengths and arrivals.")] = 0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one request.")] = 600,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write all of it to this file; - prints it.")] = None,
    chart: Annotated[Path | None, typer.Option(help="Draw throughput against latency: .svg, or .png.")] = None,
    log: Annotated[
        Path | None, typer.Option(help="Write a line of JSON for each request; `dray plan --trace` reads it.")
    ] = None,
    cost: Annotated[bool, typer.Option(help="Say what a million tokens costs, beside a GPU server.")] = False,
    tokens_per_s: Annotated[
        float, typer.Option(min=0, help="With --cost: tokens/s of one PC, in place of measuring.")
    ] = 0,
    assume: Annotated[list[str] | None, typer.Option(help="With --cost: an assumption, as gpu.price=15000.")] = None,
    assumptions: Annotated[Path | None, typer.Option(help="With --cost: a YAML file of assumptions.")] = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Measure how fast a server answers: Dray, or any other with OpenAI's API.

    With several --url, each load is measured on all of them in alternating rounds, and told as ratios too.
    """
    if not cost and (tokens_per_s or assume or assumptions):
        raise fail("--tokens-per-s, --assume and --assumptions belong to --cost")
    assumed = _assumed(assumptions, assume or [])
    if cost and tokens_per_s:
        _tell_cost(assumed.changed({"pc.tokens_per_s": tokens_per_s}), to_json)
        return
    # Here, as no other command needs an HTTP client of its own.
    from cluster.bench.compare import Plan, Server
    from cluster.bench.load import Load, RunLength
    from cluster.bench.workload import Workload

    if rate and concurrency:
        raise fail("--rate and --concurrency exclude each other")
    values = _numbers(rate or concurrency or "1,4,16", whole=not rate)
    urls = [one.rstrip("/") for one in url or [found(config, state_dir).url]]
    keys, models = _each(key, urls, "--key"), _each(model, urls, "--model")
    fields = _fields(extra) | ({"ignore_eos": True} if ignore_eos else {})
    plan = Plan(
        servers=tuple(Server(*one) for one in zip(urls, keys, models, strict=True)),
        loads=tuple(Load("rate" if rate else "concurrency", value) for value in values),
        workload=Workload(_lengths(prompt), _lengths(output), repeated, prefix, prefixes, turns),
        span=RunLength(seconds, requests, warmup),
        rounds=rounds,
        seed=seed,
        stream=stream,
        timeout_s=timeout,
        extra=fields,
    )
    if chart is not None and chart.suffix not in (".svg", ".png"):
        raise fail(f"a chart is an .svg or .png file, and {chart} is neither")
    with ExitStack() as files:
        lines = files.enter_context(_writable(log)) if log else None
        seen, whole = _measure(plan, lines)
    _tell(plan, seen, to_json, chart, assumed if cost else None)
    if not whole:
        raise typer.Exit(_INTERRUPTED)
    if not any(one.ok for measured in seen.rounds.values() for one in measured):
        raise typer.Exit(1)


def _measure(plan: "Plan", lines: TextIO | None) -> tuple["ComparisonResults", bool]:
    """What was seen, and whether it ran to its end."""
    from cluster.bench.compare import ComparisonResults, measure
    from cluster.bench.target import TargetError

    seen, whole = ComparisonResults([one.url for one in plan.servers], []), True
    began: list[float] = []
    columns = (TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn(), TimeElapsedColumn())
    figures = TextColumn("{task.fields[figures]}")
    # Drawn seldom: what the client does meanwhile would be seen as the server's time.
    with Progress(*columns, figures, console=err, transient=True, refresh_per_second=2) as progress:
        bar = progress.add_task("asking", total=None, figures="")

        def on_run(place: int, number: int, run: "Run") -> Callable[["Conversation", "Outcome"], None]:
            measured, span = run.measured, plan.span
            where = f", {plan.servers[place].url}" if len(plan.servers) > 1 else ""
            round_ = f", round {number + 1} of {plan.rounds}" if plan.rounds > 1 else ""
            total = span.requests or span.seconds
            progress.update(bar, description=f"{measured.load}{where}{round_}", total=total, completed=0)
            began.append(measured.began - span.warmup_s)

            def on_done(asked: "Conversation", outcome: "Outcome") -> None:
                if lines is not None:
                    line = _line(asked, outcome, plan, place, str(measured.load), began[0])
                    lines.write(json.dumps(line) + "\n")
                past = outcome.ended - measured.began
                rate = measured.tokens / past if past > 0 else 0.0
                figures = (
                    f"{rate:.1f} tokens/s, {measured.ok} done, {run.under_way} under way, {measured.failed} failed"
                )
                done = measured.ok + measured.failed if span.requests else max(0.0, past)
                progress.update(bar, completed=min(done, total), figures=figures)

            return on_done

        try:
            asyncio.run(measure(plan, seen, on_run))
        except TargetError as error:
            progress.stop()
            raise fail(str(error)) from None
        except KeyboardInterrupt:
            whole = False
    if not whole:
        err.print("stopped; this is what was seen until then")
        for where in seen.rounds:
            seen.rounds[where] = [one for one in seen.rounds[where] if one.seconds > 0]
        seen.rounds = {where: rounds for where, rounds in seen.rounds.items() if rounds}
    return seen, whole


def _line(
    asked: "Conversation", outcome: "Outcome", plan: "Plan", place: int, load: str, began: float
) -> dict[str, Any]:
    """A request as the log holds it. Times in seconds; `at` counts from the first load's beginning."""
    tpot = outcome.tpot_s
    return {
        "at": round(outcome.began - began, 6),
        "prompt": outcome.prompt,
        "output": outcome.completion,
        # Only the first turn of a conversation may be asked again by another.
        "question": "" if len(asked.prompts) > 1 and asked.turn else asked.question,
        "session": asked.session,
        "prefix": asked.prefix,
        "prefix_tokens": plan.workload.prefix,
        "server": place,
        "load": load,
        "ttft_s": round(outcome.ttft_s, 6),
        "tpot_s": None if tpot is None else round(tpot, 6),
        "seconds": round(outcome.seconds, 6),
        "hit": outcome.hit,
        "error": outcome.error,
    }


def _tell(
    plan: "Plan", seen: "ComparisonResults", to_json: Path | None, chart: Path | None, assumed: Assumptions | None
) -> None:
    from cluster.bench import cost as costs
    from cluster.bench.report import as_dict, charts, tables
    from cluster.charts import ChartError, draw

    if not seen.rounds:
        err.print("nothing was measured")
        return
    content = as_dict(seen, plan)
    if assumed is not None:
        assumed = _from_run(assumed, seen)
        content["cost"] = costs.as_dict(assumed)
    if to_json == Path("-"):
        out.print_json(data=content)
    else:
        for place, url in enumerate(seen.urls if len(seen.urls) > 1 else ()):
            out.print(f"{chr(ord('A') + place)}: {seen.models[place]} at {url}", highlight=False)
        for table in tables(seen):
            out.print(table)
        _tell_errors(seen)
        if assumed is not None:
            _print_cost(assumed)
    if to_json is not None and to_json != Path("-"):
        _write(to_json, content)
    if chart is not None:
        try:
            draw(charts(seen), chart)
        except (ChartError, OSError) as error:
            raise fail(str(error)) from None


def _tell_errors(seen: "ComparisonResults") -> None:
    for (load, place), rounds in seen.rounds.items():
        errors = [item for one in rounds for item in one.errors.items()]
        for error, count in errors[:_SHOWN_ERRORS]:
            err.print(f"{load}, {seen.urls[place]}: {count} failed: {error}", highlight=False, markup=False)


def _from_run(assumed: Assumptions, seen: "ComparisonResults") -> Assumptions:
    """With the speed of the load at which the first server made the most, and the streams that it then had."""
    best = max((load for load in seen.loads if seen.of(load, 0)), key=lambda load: seen.figure(load, 0, "tokens/s"))
    figures = {"pc.tokens_per_s": seen.figure(best, 0, "tokens/s")}
    if best.kind == "concurrency":
        figures["pc.streams"] = best.value
    wanted = {name: value for name, value in figures.items() if value and assumed.sources.get(name) is None}
    return assumed.changed(wanted, MEASURED)


def _assumed(file: Path | None, given: Sequence[str]) -> Assumptions:
    try:
        assumed = DEFAULT.changed(read_assumptions(file)) if file else DEFAULT
        return assumed.changed(dict(map(parse_assumption, given)))
    except (AssumptionError, OSError) as error:
        raise fail(str(error)) from None


def _tell_cost(assumed: Assumptions, to_json: Path | None) -> None:
    from cluster.bench import cost as costs

    if to_json == Path("-"):
        out.print_json(data=costs.as_dict(assumed))
        return
    _print_cost(assumed)
    if to_json is not None:
        _write(to_json, costs.as_dict(assumed))


def _print_cost(assumed: Assumptions) -> None:
    from cluster.bench.report import cost_tables, verdict

    for table in cost_tables(assumed):
        out.print(table)
    out.print(verdict(assumed), highlight=False)


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise fail(str(error)) from None


def _writable(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise fail(str(error)) from None


def _each(given: Sequence[str] | None, urls: Sequence[str], option: str) -> list[str]:
    given = given or [""]
    if len(given) == 1:
        return [given[0]] * len(urls)
    if len(given) != len(urls):
        raise fail(f"{option} is given {len(given)} times for {len(urls)} servers; give it once, or once for each")
    return list(given)


def _numbers(text: str, *, whole: bool) -> list[float]:
    try:
        numbers = [float(int(part)) if whole else float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0:
        raise fail(f"{text!r} are no loads: write them like {'1,4,16' if whole else '0.5,1,2'}")
    return numbers


def _lengths(text: str) -> Lengths:
    try:
        return parse_lengths(text)
    except ValueError as error:
        raise fail(str(error)) from None


def _fields(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text or "{}")
    except ValueError as error:
        raise fail(f"--extra is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise fail("--extra is no JSON object")
    return given
