"""A plan as a table, as JSON and as charts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.charts import Chart, Line
from cluster.plan.load import HOUR_S
from cluster.plan.nodes import Capacity
from cluster.plan.search import SampleError, Slice, Target, Trial
from cluster.tables import DataTable


@dataclass(frozen=True, slots=True)
class Plan:
    """What meets the target, and what the simulation showed. share: of the day's load that was simulated. stored:
    answers in the cache at the end of the day. sample_error: None where all replicas were simulated."""

    target: Target
    needed: Capacity
    peak: Trial
    peak_requests_per_s: float
    day: Sequence[Slice]
    share: float
    stored: int
    sample_error: SampleError | None = None


def table(plan: Plan) -> DataTable:
    """The plan as a table, one figure a line."""
    need, seen, target = plan.needed, plan.peak.measured, plan.target
    table = DataTable("", "value", right=["value"], header=False)
    requests = max(seen.requests, 1)
    rows = [
        ("replicas", f"{need.replicas:,}"),
        ("replicas on a node", f"{need.on_a_node}"),
        ("nodes", f"{need.nodes:,}"),
        ("cores, including spare ones", f"{need.cores:,}"),
        ("memory per node, GiB", f"{need.node_memory_mb / 1024:,.1f}"),
        ("memory in total, GiB", f"{need.memory_mb / 1024:,.1f}"),
        ("routers", f"{need.routers:,}"),
        ("requests/s at the busiest time", f"{plan.peak_requests_per_s:,.2f}"),
        ("of these cached, joined", f"{seen.hits / requests:.0%}, {seen.joined / requests:.0%}"),
        ("TTFT p50, p95, s (p95 target)", f"{seen.ttft.at(0.5):.2f}, {seen.ttft.at(0.95):.2f} ({target.ttft_s:g})"),
        ("TPOT p50, p95, s (p95 target)", f"{seen.tpot.at(0.5):.3f}, {seen.tpot.at(0.95):.3f} ({target.tpot_s:g})"),
        ("requests a day", f"{sum(stretch.measured.requests for stretch in plan.day) / plan.share:,.0f}"),
        ("answers cached at the end of the day", f"{plan.stored:,}"),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan as JSON; times in seconds."""
    seen = plan.peak.measured
    return {
        "target": asdict(plan.target),
        "needed": asdict(plan.needed),
        "peak": {
            "requests_per_s": plan.peak_requests_per_s,
            "tokens_per_s": plan.peak_requests_per_s * seen.tokens / max(seen.requests, 1),
            "simulated_share": plan.peak.share,
            "sample_error": asdict(plan.sample_error) if plan.sample_error else None,
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
            "requests": sum(stretch.measured.requests for stretch in plan.day) / plan.share,
            "tokens": sum(stretch.measured.tokens for stretch in plan.day) / plan.share,
            "slices": [
                {
                    "at": stretch.at,
                    "requests_per_s": stretch.requests_per_s,
                    "replicas": stretch.replicas,
                    "ttft_s": stretch.measured.ttft.as_dict(),
                    "tpot_s": stretch.measured.tpot.as_dict(),
                }
                for stretch in plan.day
            ],
        },
    }


def charts(plan: Plan) -> list[Chart]:
    """Charts of load, replicas and latency over the day."""
    hours = [stretch.at / HOUR_S for stretch in plan.day]

    def line(name: str, values: Sequence[float]) -> Line:
        return Line(name, list(zip(hours, values, strict=True)))

    ttft = [line(f"p{at}", [stretch.measured.ttft.at(at / 100) for stretch in plan.day]) for at in (95, 50)]
    tpot = [line(f"p{at}", [1000 * stretch.measured.tpot.at(at / 100) for stretch in plan.day]) for at in (95, 50)]
    return [
        Chart("Load", "hour", "requests/s", [line("load", [stretch.requests_per_s for stretch in plan.day])]),
        Chart("Replicas", "hour", "replicas", [line("replicas", [stretch.replicas for stretch in plan.day])]),
        Chart("Time to first token", "hour", "s", ttft),
        Chart("Time per output token", "hour", "ms", tpot),
    ]
