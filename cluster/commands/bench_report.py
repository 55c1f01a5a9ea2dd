"""What `dray bench` prints and writes: tables, JSON, charts and costs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.bench import cost
from cluster.bench.cost import MEASURED, Assumptions
from cluster.commands.console import err, fail, out, print_json

if TYPE_CHECKING:
    from cluster.bench.compare import ComparisonResults, Plan

_MAX_SHOWN_ERRORS = 5
_STDOUT = Path("-")


def report_results(
    plan: "Plan",
    results: "ComparisonResults",
    to_json: Path | None,
    chart: Path | None,
    assumptions: Assumptions | None,
) -> None:
    """Reports a measurement. assumptions: for its costs; None leaves them out."""
    from cluster.bench.report import as_dict, charts
    from cluster.charts import ChartError, draw

    if not results.rounds:
        err.print("nothing was measured")
        return
    content = as_dict(results, plan)
    if assumptions is not None:
        assumptions = _with_measured(assumptions, results)
        content["cost"] = cost.as_dict(assumptions)
    if to_json == _STDOUT:
        print_json(content)
    else:
        _print_results(results)
        if assumptions is not None:
            _print_costs(assumptions)
    if to_json is not None and to_json != _STDOUT:
        _write(to_json, content)
    if chart is not None:
        try:
            draw(charts(results), chart)
        except (ChartError, OSError) as error:
            raise fail(str(error)) from None


def report_costs(assumptions: Assumptions, to_json: Path | None) -> None:
    """Reports the costs of both sides, without a measurement."""
    if to_json == _STDOUT:
        print_json(cost.as_dict(assumptions))
        return
    _print_costs(assumptions)
    if to_json is not None:
        _write(to_json, cost.as_dict(assumptions))


def _print_results(results: "ComparisonResults") -> None:
    from cluster.bench.report import letter, tables

    for server, url in enumerate(results.urls if len(results.urls) > 1 else ()):
        out.print(f"{letter(server)}: {results.models[server]} at {url}", highlight=False)
    for table in tables(results):
        out.print(table)
    for (load, server), rounds in results.rounds.items():
        errors = [error for stats in rounds for error in stats.errors.items()]
        for error, count in errors[:_MAX_SHOWN_ERRORS]:
            err.print(f"{load}, {results.urls[server]}: {count} failed: {error}", highlight=False, markup=False)


def _with_measured(assumptions: Assumptions, results: "ComparisonResults") -> Assumptions:
    """With the highest speed that the first server reached, and its concurrency then, unless they were given."""
    best = max(
        (load for load in results.loads if results.of(load, 0)),
        key=lambda load: results.figure(load, 0, "tokens/s"),
    )
    figures = {"pc.tokens_per_s": results.figure(best, 0, "tokens/s")}
    if best.kind == "concurrency":
        figures["pc.streams"] = best.value
    unset = {name: value for name, value in figures.items() if value and assumptions.sources.get(name) is None}
    return assumptions.changed(unset, MEASURED)


def _print_costs(assumptions: Assumptions) -> None:
    from cluster.bench.report import cost_tables, verdict

    for table in cost_tables(assumptions):
        out.print(table)
    out.print(verdict(assumptions), highlight=False)


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise fail(str(error)) from None
