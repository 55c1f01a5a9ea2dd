"""What a million tokens costs on PCs that the company already has, and on a GPU server that is bought for it.

Money is in the currency of the assumptions. A machine's monthly cost is its price over its lifetime, its fixed running
costs, and its power while it is on. Its monthly output is its full speed for the share of those hours in which it is
used. Each assumption names its source.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

GIVEN, ASSUMED, MEASURED = "given", "assumed: set your own", "measured in this run"
_MAX_MACHINES = 20_000


class AssumptionError(Exception):
    """An assumption that is unknown or impossible; the message says which, and what is possible."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A kind of machine.

    price: of one machine, paid once. life_months: lifetime over which the price is spread. monthly: fixed running
    costs. watts: power while it is on, paid at `kwh` per kilowatt-hour; 0 where `monthly` includes it. hours: per
    month, during which it is on. used: share of those at full load. tokens_per_s, streams: speed and concurrency at
    full load.
    """

    price: float = 0.0
    life_months: float = 36.0
    monthly: float = 0.0
    watts: float = 0.0
    kwh: float = 0.0
    hours: float = 720.0
    used: float = 0.3
    tokens_per_s: float = 1.0
    streams: float = 1.0

    @property
    def month(self) -> float:
        """Cost of one machine per month."""
        return self.price / self.life_months + self.monthly + self.watts / 1000 * self.hours * self.kwh

    @property
    def tokens(self) -> float:
        """Tokens that one machine generates per month."""
        return self.tokens_per_s * 3600 * self.hours * self.used

    @property
    def per_million(self) -> float:
        """Cost of a million tokens on a fully used machine."""
        return self.month / self.tokens * 1e6

    def needed(self, tokens: float) -> int:
        """Machines for this many tokens per month."""
        return max(1, math.ceil(tokens / self.tokens - 1e-9))


@dataclass(frozen=True)
class Assumptions:
    """Both sides, and the source of each figure."""

    pc: Machine
    gpu: Machine
    sources: Mapping[str, str] = field(default_factory=dict)

    def source(self, name: str) -> str:
        return self.sources.get(name, ASSUMED)

    def changed(self, figures: Mapping[str, float], source: str = GIVEN) -> "Assumptions":
        """With other figures, by names such as `gpu.price`. Raises AssumptionError."""
        changed = self
        for name, value in figures.items():
            kind, _, figure = name.partition(".")
            if kind not in ("pc", "gpu") or figure not in FIGURE_NAMES:
                known = ", ".join(FIGURE_NAMES)
                raise AssumptionError(
                    f"unknown assumption {name!r}; there are pc.X and gpu.X, where X is one of {known}"
                )
            if value < 0 or (value == 0 and figure in _POSITIVE) or (figure == "used" and value > 1):
                raise AssumptionError(f"{name} cannot be {value:g}")
            machine = replace(getattr(changed, kind), **{figure: value})
            changed = replace(changed, **{kind: machine}, sources={**changed.sources, name: source})
        return changed


FIGURE_NAMES = tuple(figure.name for figure in fields(Machine))
_POSITIVE = ("life_months", "hours", "used", "tokens_per_s", "streams")

DEFAULT = Assumptions(
    pc=Machine(monthly=50.0, tokens_per_s=10.0),
    gpu=Machine(price=15_000.0, monthly=500.0, tokens_per_s=1000.0, streams=32.0),
    sources={
        "pc.price": "the company has them",
        "pc.monthly": "the project's comparison",
        "gpu.price": "the project's comparison: an A10",
        "gpu.monthly": "the project's comparison: power etc.",
        "pc.watts": "in pc.monthly",
        "gpu.watts": "in gpu.monthly",
        "pc.kwh": "in pc.monthly",
        "gpu.kwh": "in gpu.monthly",
    },
)
"""In yuan: a new server with an A10, against existing PCs."""


def parse_assumption(text: str) -> tuple[str, float]:
    """Parses `gpu.price=15000`. Raises AssumptionError."""
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise AssumptionError(f"{text!r} is no assumption: write it like gpu.price=15000") from None


def read_assumptions(path: Path) -> dict[str, float]:
    """Reads a YAML file with the sections `pc:` and `gpu:`. Raises AssumptionError, OSError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {f"{kind}.{name}": float(value) for kind, figures in content.items() for name, value in figures.items()}
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise AssumptionError(f"{path} is not a file of assumptions: {error}") from None


@dataclass(frozen=True, slots=True)
class Side:
    """One side at one load: the machines that it needs, their cost per month, and that of a million tokens."""

    machines: int
    month: float
    per_million: float


def side(machine: Machine, tokens: float) -> Side:
    """What this many tokens per month take."""
    count = machine.needed(tokens)
    return Side(count, count * machine.month, count * machine.month / tokens * 1e6)


@dataclass(frozen=True, slots=True)
class BreakEven:
    """The lowest load at which GPU servers are cheaper. pcs: PCs that would cost more than `gpus` servers there.

    tokens: per month. tokens_per_s: in the hours of use. streams: concurrent ones that those PCs carry.
    """

    pcs: int
    gpus: int
    tokens: float
    tokens_per_s: float
    streams: float


def break_even(pc: Machine, gpu: Machine) -> BreakEven | None:
    """None where PCs are cheaper at every load, up to 20,000 of them."""
    for pcs in range(_MAX_MACHINES):
        # With one more token than `pcs` PCs generate, one more PC is needed.
        tokens = pcs * pc.tokens
        gpus = math.floor(tokens / gpu.tokens + 1e-9) + 1
        if gpus * gpu.month < (pcs + 1) * pc.month:
            return BreakEven(pcs + 1, gpus, tokens, pcs * pc.tokens_per_s, pcs * pc.streams)
    return None


def loads(assumptions: Assumptions) -> Iterator[float]:
    """The loads that a report shows, in tokens per month: one and ten machines of each kind, and the break-even."""
    pc, gpu = assumptions.pc, assumptions.gpu
    marks = {pc.tokens, gpu.tokens, 10 * pc.tokens, 10 * gpu.tokens}
    if (at := break_even(pc, gpu)) is not None and at.tokens:
        marks |= {at.tokens, at.tokens * 1.001}
    yield from sorted(marks)


def as_dict(assumptions: Assumptions) -> dict[str, Any]:
    """Everything, for JSON."""
    pc, gpu = assumptions.pc, assumptions.gpu
    at = break_even(pc, gpu)
    return {
        "assumptions": {
            f"{kind}.{figure}": {
                "value": getattr(machine, figure),
                "source": assumptions.source(f"{kind}.{figure}"),
            }
            for kind, machine in (("pc", pc), ("gpu", gpu))
            for figure in FIGURE_NAMES
        },
        "full_load": {
            kind: {"month": machine.month, "tokens_a_month": machine.tokens, "per_million": machine.per_million}
            for kind, machine in (("pc", pc), ("gpu", gpu))
        },
        "loads": [
            {"tokens_a_month": tokens, "pc": asdict(side(pc, tokens)), "gpu": asdict(side(gpu, tokens))}
            for tokens in loads(assumptions)
        ],
        "gpu_wins_beyond": None
        if at is None
        else {
            "tokens_a_month": at.tokens,
            "tokens_per_s": at.tokens_per_s,
            "streams": at.streams,
            "pcs": at.pcs,
            "gpus": at.gpus,
        },
        "cheaper_at_full_load": "gpu" if gpu.per_million < pc.per_million else "pc",
    }
