"""A plan as a table, as JSON and as a picture."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from cluster.charts import Chart, Line
from cluster.plan.load import HOUR_S
from cluster.plan.nodes import Capacity
from cluster.plan.search import Slice, Target, Trial


@dataclass(frozen=True, slots=True)
class Plan:
    """What holds the target, and what was seen of it. share: of the day's load that was simulated."""

    target: Target
    needed: Capacity
    peak: Trial
    peak_requests_per_s: float
    day: Sequence[Slice]
    share: float
    stored: int


def table(plan: Plan) -> Table:
    """The plan, a line for each figure."""
    need, seen, target = plan.needed, plan.peak.seen, plan.target
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    requests = max(seen.requests, 1)
    rows = [
        ("replicas", f"{need.replicas:,}"),
        ("replicas on a node", f"{need.on_a_node}"),
        ("nodes", f"{need.nodes:,}"),
        ("cores, with those for all else", f"{need.cores:,}"),
        ("memory of a node, GiB", f"{need.node_memory_mb / 1024:,.1f}"),
        ("memory in all, GiB", f"{need.memory_mb / 1024:,.1f}"),
        ("routers", f"{need.routers:,}"),
        ("requests a second at the busiest time", f"{plan.peak_requests_per_s:,.2f}"),
        ("of them from the cache, and joined", f"{seen.hits / requests:.0%}, {seen.joined / requests:.0%}"),
        ("TTFT p50, p95, s (target of p95)", f"{seen.ttft.at(0.5):.2f}, {seen.ttft.at(0.95):.2f} ({target.ttft_s:g})"),
        ("TPOT p50, p95, s (target of p95)", f"{seen.tpot.at(0.5):.3f}, {seen.tpot.at(0.95):.3f} ({target.tpot_s:g})"),
        ("answers stored in the end", f"{plan.stored:,}"),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def as_dict(plan: Plan) -> dict[str, Any]:
    """As JSON has it; times in seconds."""
    seen = plan.peak.seen
    return {
        "target": asdict(plan.target),
        "needed": asdict(plan.needed),
        "peak": {
            "requests_per_s": plan.peak_requests_per_s,
            "simulated_share": plan.peak.share,
            "requests": seen.requests,
            "hits": seen.hits,
            "joined": seen.joined,
            "refused": seen.refused,
            "ttft_s": seen.ttft.as_dict(),
            "tpot_s": seen.tpot.as_dict(),
        },
        "day": {
            "simulated_share": plan.share,
            "answers_stored": plan.stored,
            "slices": [
                {
                    "at": one.at,
                    "requests_per_s": one.requests_per_s,
                    "replicas": one.replicas,
                    "ttft_s": one.seen.ttft.as_dict(),
                    "tpot_s": one.seen.tpot.as_dict(),
                }
                for one in plan.day
            ],
        },
    }


def charts(plan: Plan) -> list[Chart]:
    """Load, replicas and latency over the day."""
    hours = [one.at / HOUR_S for one in plan.day]

    def line(name: str, values: Sequence[float]) -> Line:
        return Line(name, list(zip(hours, values, strict=True)))

    ttft = [line(f"p{at}", [one.seen.ttft.at(at / 100) for one in plan.day]) for at in (95, 50)]
    tpot = [line(f"p{at}", [1000 * one.seen.tpot.at(at / 100) for one in plan.day]) for at in (95, 50)]
    return [
        Chart("Load", "hour", "requests/s", [line("load", [one.requests_per_s for one in plan.day])]),
        Chart("Replicas", "hour", "replicas", [line("replicas", [one.replicas for one in plan.day])]),
        Chart("Time to first token", "hour", "s", ttft),
        Chart("Time per output token", "hour", "ms", tpot),
    ]
