"""Measurements and costs as tables, JSON and charts."""

from typing import Any

from cluster.bench.compare import FIGURES, ComparisonResults, Plan
from cluster.bench.cost import FIGURE_NAMES, Assumptions, Machine, break_even, loads, side
from cluster.charts import Chart, Line
from cluster.tables import DataTable

_LATENCIES = ("TTFT", "TPOT", "E2E")
_PERCENTILES = ("p50", "p95", "p99")


def tables(results: ComparisonResults) -> list[DataTable]:
    """The figures of each load and server; with several servers, also their ratios to the first."""
    several = len(results.urls) > 1
    latencies = (f"{name}, ms" for name in _LATENCIES)
    figures = ("tokens/s", "requests/s", *latencies, "completed", "cache hits", "failed")
    medians = "; figures are medians of the rounds" if _max_rounds(results) > 1 else ""
    table = DataTable(
        "load",
        *(["server"] if several else []),
        *figures,
        title="" if several else f"{results.models[0]} at {results.urls[0]}",
        caption=f"times: p50/p95/p99{medians}",
        right=figures,
        drop=("cache hits", "E2E, ms", "requests/s", "completed", "failed"),
    )
    for load in results.loads:
        for server in range(len(results.urls)):
            rounds = results.of(load, server)
            if not rounds:
                continue
            times = (
                "/".join(f"{1000 * results.figure(load, server, f'{name} {at}'):.0f}" for at in _PERCENTILES)
                for name in _LATENCIES
            )
            table.add_row(
                str(load),
                *([letter(server)] if several else []),
                f"{results.figure(load, server, 'tokens/s'):.1f}",
                f"{results.figure(load, server, 'requests/s'):.2f}",
                *times,
                str(sum(stats.ok for stats in rounds)),
                str(sum(stats.hits for stats in rounds)),
                str(sum(stats.failed for stats in rounds)),
            )
    return [table, *([_ratios(results)] if several else [])]


def _ratios(results: ComparisonResults) -> DataTable:
    names = [name for name in FIGURES if not name.endswith("p99")]
    drop = [name for name in names if name.startswith("E2E")] + ["requests/s"]
    table = DataTable("load", "server", *names, title="Ratio to A, median of the rounds", right=names, drop=drop)
    for load in results.loads:
        for server in range(1, len(results.urls)):
            if not results.of(load, server):
                continue
            ratios = (results.ratio(load, server, name) for name in names)
            table.add_row(str(load), letter(server), *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios))
    return table


def letter(server: int) -> str:
    """What a server is called in tables and charts: A, B, C."""
    return chr(ord("A") + server)


def _max_rounds(results: ComparisonResults) -> int:
    return max((len(rounds) for rounds in results.rounds.values()), default=0)


def as_dict(results: ComparisonResults, plan: Plan) -> dict[str, Any]:
    """Everything, for JSON; times in seconds."""
    workload, length = plan.workload, plan.length
    return {
        "servers": [{"url": url, "model": model} for url, model in zip(results.urls, results.models, strict=False)],
        "workload": {
            "prompt": str(workload.prompt),
            "output": str(workload.output),
            "repeated": workload.repeated,
            "prefix": workload.prefix,
            "prefixes": workload.prefixes,
            "turns": workload.turns,
            "stream": plan.stream,
            "seed": plan.seed,
            "seconds": length.seconds,
            "requests": length.requests,
            "warmup_s": length.warmup_s,
            "extra": plan.extra,
        },
        "loads": [
            {
                "load": str(load),
                "server": server,
                "median": {name: results.figure(load, server, name) for name in FIGURES},
                "ratio": {name: results.ratio(load, server, name) for name in FIGURES} if server else {},
                "rounds": [stats.as_dict() for stats in rounds],
            }
            for (load, server), rounds in results.rounds.items()
        ],
    }


def charts(results: ComparisonResults) -> list[Chart]:
    """Latency over throughput, a point for each load."""
    panels = (("TTFT p95", "time to first token, p95, ms"), ("TPOT p95", "time per output token, p95, ms"))
    return [
        Chart(
            f"{name} over throughput",
            "tokens/s",
            axis,
            [
                Line(
                    f"{letter(server)}: {url}",
                    [
                        (results.figure(load, server, "tokens/s"), 1000 * results.figure(load, server, name))
                        for load in results.loads
                        if results.of(load, server)
                    ],
                    [str(load) for load in results.loads if results.of(load, server)],
                )
                for server, url in enumerate(results.urls)
            ],
        )
        for name, axis in panels
    ]


def cost_tables(assumptions: Assumptions) -> list[DataTable]:
    """The assumptions, and what both sides cost at several loads."""
    sources = ("source of pc", "source of gpu")
    given = DataTable(
        *("assumption", "pc", sources[0], "gpu", sources[1]),
        title="Assumptions: change them with --assume NAME=VALUE",
        right=["pc", "gpu"],
        sentences=sources,
        drop=sources,
    )
    for name in FIGURE_NAMES:
        cells = (
            (f"{getattr(machine, name):g}", assumptions.source(f"{kind}.{name}"))
            for kind, machine in _machines(assumptions)
        )
        given.add_row(name, *(cell for pair in cells for cell in pair))
    figures = ("PCs", "PC cost", "PC cost/million", "GPU servers", "GPU cost", "GPU cost/million")
    heads = ("million tokens/month", *figures, "cheaper")
    drop = ("PCs", "GPU servers", "PC cost", "GPU cost")
    table = DataTable(*heads, title="Costs; those of a side are a month's", right=heads, drop=drop)
    for tokens in loads(assumptions):
        pc, gpu = side(assumptions.pc, tokens), side(assumptions.gpu, tokens)
        cheaper = "PCs" if pc.month < gpu.month else "GPU" if gpu.month < pc.month else "equal"
        costs = (
            cell
            for machines in (pc, gpu)
            for cell in (str(machines.machines), f"{machines.month:,.0f}", f"{machines.per_million:,.2f}")
        )
        table.add_row(f"{tokens / 1e6:,.1f}", *costs, cheaper)
    return [given, table]


def verdict(assumptions: Assumptions) -> str:
    """The load above which GPU servers are cheaper, in words."""
    at = break_even(assumptions.pc, assumptions.gpu)
    if at is None:
        return "With these assumptions, PCs are cheaper at every load."
    if at.pcs == 1:
        return "With these assumptions, a GPU server is cheaper at every load."
    beyond = (
        f"Above {at.tokens / 1e6:,.1f} million tokens a month ({at.tokens_per_s:,.0f} tokens/s in the hours of use, "
        f"about {at.streams:,.0f} concurrent streams, the work of {at.pcs - 1} PCs) {_servers(at.gpus)} cheaper."
    )
    pc, gpu = assumptions.pc.per_million, assumptions.gpu.per_million
    if pc <= gpu:
        return (
            f"{beyond} This holds only near that load: fully used, a million tokens cost {pc:,.2f} on PCs and "
            f"{gpu:,.2f} on GPU servers."
        )
    return f"{beyond} Fully used, a million tokens cost {pc:,.2f} on PCs and {gpu:,.2f} on GPU servers."


def _servers(count: int) -> str:
    return "one GPU server is" if count == 1 else f"{count} GPU servers are"


def _machines(assumptions: Assumptions) -> tuple[tuple[str, Machine], ...]:
    return ("pc", assumptions.pc), ("gpu", assumptions.gpu)
