"""What a plan's nodes cost beside GPU servers for the same load: money, power and CO2."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from cluster.bench.cost import Assumptions, Machine
from cluster.tables import DataTable

GRID_KG_PER_KWH = 0.582
"""CO2 equivalents of a kWh in China in 2023: Ember and Energy Institute, by Our World in Data
(https://ourworldindata.org/grapher/carbon-intensity-electricity)."""
_DAYS = 30


class PlanFileError(Exception):
    """The file is no plan; the message says why."""


class _Needed(msgspec.Struct, frozen=True):
    nodes: int


class _Peak(msgspec.Struct, frozen=True):
    tokens_per_s: float


class _Day(msgspec.Struct, frozen=True):
    requests: float
    tokens: float


class PlanFigures(msgspec.Struct, frozen=True):
    """What costs follow from, of the JSON that `dray plan` writes. tokens: generated, without cached answers."""

    needed: _Needed
    peak: _Peak
    day: _Day


def read_plan(path: Path) -> PlanFigures:
    """Reads the JSON of `dray plan --json`. Raises PlanFileError, OSError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=PlanFigures)
    except msgspec.DecodeError as error:
        raise PlanFileError(f"{path} is not what `dray plan --json` writes: {error}") from None


@dataclass(frozen=True, slots=True)
class Bill:
    """Machines that are on all the time they are needed. price: of all of them, once. month: money a month, with the
    price spread over their lifetime. watts: of all together. kwh, kg: power, and its CO2, a month; 0 where no watts are
    assumed. per_million: money for a million tokens."""

    machines: int
    price: float
    month: float
    watts: float
    kwh: float
    kg: float
    per_million: float


def bill(machine: Machine, count: int, tokens_a_month: float, kg_per_kwh: float) -> Bill:
    """What this many machines cost. kg_per_kwh: CO2 of a kWh."""
    kwh = count * machine.watts / 1000 * machine.hours
    month = count * machine.month
    per_million = month / tokens_a_month * 1e6 if tokens_a_month else 0.0
    return Bill(count, count * machine.price, month, count * machine.watts, kwh, kwh * kg_per_kwh, per_million)


def bills(plan: PlanFigures, assumptions: Assumptions, kg_per_kwh: float) -> tuple[Bill, Bill]:
    """Of the plan's nodes (`pc` in the assumptions), and of GPU servers that generate as many tokens at the busiest
    time."""
    tokens = _DAYS * plan.day.tokens
    gpus = max(1, math.ceil(plan.peak.tokens_per_s / assumptions.gpu.tokens_per_s - 1e-9))
    return (
        bill(assumptions.pc, plan.needed.nodes, tokens, kg_per_kwh),
        bill(assumptions.gpu, gpus, tokens, kg_per_kwh),
    )


def table(nodes: Bill, gpus: Bill) -> DataTable:
    """Both as a table."""
    table = DataTable("", "nodes", "GPU servers", right=["nodes", "GPU servers"])
    rows: Sequence[tuple[str, float, float]] = [
        ("machines", nodes.machines, gpus.machines),
        ("price, once", nodes.price, gpus.price),
        ("money a month", nodes.month, gpus.month),
        ("watts, all machines", nodes.watts, gpus.watts),
        ("kWh a month", nodes.kwh, gpus.kwh),
        ("kg CO2 a month", nodes.kg, gpus.kg),
    ]
    for name, one, other in rows:
        table.add_row(name, f"{one:,.0f}", f"{other:,.0f}")
    table.add_row("money for a million tokens", f"{nodes.per_million:,.2f}", f"{gpus.per_million:,.2f}")
    return table


def as_dict(nodes: Bill, gpus: Bill, assumptions: Assumptions, kg_per_kwh: float) -> dict[str, Any]:
    """Both as JSON, with what they were calculated from."""
    figures = {"pc": asdict(assumptions.pc), "gpu": asdict(assumptions.gpu)}
    return {"nodes": asdict(nodes), "gpu_servers": asdict(gpus), "assumptions": figures, "kg_per_kwh": kg_per_kwh}
