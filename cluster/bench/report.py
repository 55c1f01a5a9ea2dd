"""What was measured, and what it costs: as tables, JSON and a picture."""

from typing import Any

from rich.table import Table

from cluster.bench.compare import FIGURES, ComparisonResults, Plan
from cluster.bench.cost import NAMES, Assumptions, break_even, loads, side
from cluster.charts import Chart, Line

_TIMED = ("TTFT", "TPOT", "whole")
_SHARES = ("p50", "p95", "p99")


def tables(seen: ComparisonResults) -> list[Table]:
    """Figures of each load and server, and with several servers their ratios to the first."""
    several = len(seen.urls) > 1
    title = "" if several else f"{seen.models[0]} at {seen.urls[0]}"
    table = Table("load", *(["server"] if several else []), title=title, title_justify="left")
    timed = (f"{name}, ms" for name in _TIMED)
    heads = ("tokens/s", "requests/s", *timed, "answers", "stored", "failed")
    for head in heads:
        table.add_column(head, justify="right")
    for load in seen.loads:
        for place in range(len(seen.urls)):
            rounds = seen.of(load, place)
            if not rounds:
                continue
            times = (
                "/".join(f"{1000 * seen.figure(load, place, f'{name} {at}'):.0f}" for at in _SHARES) for name in _TIMED
            )
            table.add_row(
                str(load),
                *([_letter(place)] if several else []),
                f"{seen.figure(load, place, 'tokens/s'):.1f}",
                f"{seen.figure(load, place, 'requests/s'):.2f}",
                *times,
                str(sum(one.ok for one in rounds)),
                str(sum(one.hits for one in rounds)),
                str(sum(one.failed for one in rounds)),
            )
    table.caption = "times: p50/p95/p99" + ("; each figure the median of the rounds" if _most_rounds(seen) > 1 else "")
    return [table, *([_ratios(seen)] if several else [])]


def _ratios(seen: ComparisonResults) -> Table:
    names = [name for name in FIGURES if not name.endswith("p99")]
    table = Table("load", "server", title="over A's, by round", title_justify="left")
    for name in names:
        table.add_column(name, justify="right")
    for load in seen.loads:
        for place in range(1, len(seen.urls)):
            if not seen.of(load, place):
                continue
            ratios = (seen.ratio(load, place, name) for name in names)
            table.add_row(str(load), _letter(place), *("" if one is None else f"{one:.2f}" for one in ratios))
    return table


def _letter(place: int) -> str:
    return chr(ord("A") + place)


def _most_rounds(seen: ComparisonResults) -> int:
    return max((len(rounds) for rounds in seen.rounds.values()), default=0)


def as_dict(seen: ComparisonResults, plan: Plan) -> dict[str, Any]:
    """All of it as JSON has it; times in seconds."""
    work, span = plan.workload, plan.span
    return {
        "servers": [{"url": url, "model": model} for url, model in zip(seen.urls, seen.models, strict=False)],
        "workload": {
            "prompt": str(work.prompt),
            "output": str(work.output),
            "repeated": work.repeated,
            "prefix": work.prefix,
            "prefixes": work.prefixes,
            "turns": work.turns,
            "stream": plan.stream,
            "seed": plan.seed,
            "seconds": span.seconds,
            "requests": span.requests,
            "warmup_s": span.warmup_s,
            "extra": plan.extra,
        },
        "loads": [
            {
                "load": str(load),
                "server": place,
                "median": {name: seen.figure(load, place, name) for name in FIGURES},
                "ratio": {name: seen.ratio(load, place, name) for name in FIGURES} if place else {},
                "rounds": [one.as_dict() for one in rounds],
            }
            for (load, place), rounds in seen.rounds.items()
        ],
    }


def charts(seen: ComparisonResults) -> list[Chart]:
    """Throughput against latency, over the loads."""
    panels = (("TTFT p95", "time to first token, p95, ms"), ("TPOT p95", "time per output token, p95, ms"))
    return [
        Chart(
            f"{name}, over throughput",
            "tokens/s",
            upward,
            [
                Line(
                    f"{_letter(place)}: {url}",
                    [
                        (seen.figure(load, place, "tokens/s"), 1000 * seen.figure(load, place, name))
                        for load in seen.loads
                        if seen.of(load, place)
                    ],
                    [str(load) for load in seen.loads if seen.of(load, place)],
                )
                for place, url in enumerate(seen.urls)
            ],
        )
        for name, upward in panels
    ]


def cost_tables(assumed: Assumptions) -> list[Table]:
    """The assumptions, and both sides at loads worth a look."""
    given = Table("assumption", title="Assumptions: change each with --assume NAME=VALUE", title_justify="left")
    for head in ("pc", "where from", "gpu", "where from"):
        given.add_column(head, justify="right" if head in ("pc", "gpu") else "left")
    for name in NAMES:
        cells = ((f"{getattr(one, name):g}", assumed.source(f"{side}.{name}")) for side, one in _sides(assumed))
        given.add_row(name, *(cell for pair in cells for cell in pair))
    table = Table("tokens a month, million", title="What they cost", title_justify="left")
    for head in ("PCs", "a month", "per million", "GPU servers", "a month", "per million", "cheaper"):
        table.add_column(head, justify="right")
    for tokens in loads(assumed):
        pc, gpu = side(assumed.pc, tokens), side(assumed.gpu, tokens)
        cheaper = "PCs" if pc.month < gpu.month else "GPU" if gpu.month < pc.month else "equal"
        costs = (
            cell for one in (pc, gpu) for cell in (str(one.machines), f"{one.month:,.0f}", f"{one.per_million:,.2f}")
        )
        table.add_row(f"{tokens / 1e6:,.1f}", *costs, cheaper)
    return [given, table]


def verdict(assumed: Assumptions) -> str:
    """At which load the server is the cheaper, in words."""
    at = break_even(assumed.pc, assumed.gpu)
    if at is None:
        return "By these assumptions the PCs are the cheaper at every load."
    if at.pcs == 1:
        return "By these assumptions a GPU server is the cheaper at every load."
    beyond = (
        f"Beyond {at.tokens / 1e6:,.1f} million tokens a month ({at.tokens_per_s:,.0f} tokens/s in the hours of use, "
        f"about {at.streams:,.0f} streams at a time, the work of {at.pcs - 1} PCs) {_servers(at.gpus)} cheaper."
    )
    pc, gpu = assumed.pc.per_million, assumed.gpu.per_million
    best = f"Fully used, a million tokens cost {pc:,.2f} on PCs and {gpu:,.2f} on GPU servers."
    if pc <= gpu:
        return f"{beyond} That is so only near that load: {best[0].lower()}{best[1:]}"
    return f"{beyond} {best}"


def _servers(count: int) -> str:
    return "one GPU server is" if count == 1 else f"{count} GPU servers are"


def _sides(assumed: Assumptions) -> tuple[tuple[str, Any], ...]:
    return ("pc", assumed.pc), ("gpu", assumed.gpu)
