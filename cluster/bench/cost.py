"""What a million tokens costs on machines that are there already, beside a server that is bought for it.

Money is in whatever currency the assumptions are in. A machine's month costs its price over its life, what it costs to
run whatever it does, and its power for the hours in which it is on. What it makes in a month is its speed at full load
for the share of those hours in which it is used. Each assumption says where it comes from.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

GIVEN, ASSUMED, MEASURED = "given", "assumed: set your own", "measured in this run"
_MOST_MACHINES = 20_000


class AssumptionError(Exception):
    """An assumption that cannot be; the message says which, and what can."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A kind of machine. price: of one, at once. life_months: over which the price is spread. monthly: to run one,
    whatever it does. watts: while it is on, for which `kwh` is paid; 0 where `monthly` holds the power. hours: of a
    month in which it is on. used: share of those in which it works at full load. tokens_per_s: then. streams: that it
    then answers at a time."""

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
        """What one costs a month."""
        return self.price / self.life_months + self.monthly + self.watts / 1000 * self.hours * self.kwh

    @property
    def tokens(self) -> float:
        """What one makes a month."""
        return self.tokens_per_s * 3600 * self.hours * self.used

    @property
    def per_million(self) -> float:
        """Of one that makes all it can."""
        return self.month / self.tokens * 1e6

    def needed(self, tokens: float) -> int:
        """Machines for so many tokens a month."""
        return max(1, math.ceil(tokens / self.tokens - 1e-9))


@dataclass(frozen=True)
class Assumptions:
    """Both sides, and where each figure comes from."""

    pc: Machine
    gpu: Machine
    sources: Mapping[str, str] = field(default_factory=dict)

    def source(self, name: str) -> str:
        return self.sources.get(name, ASSUMED)

    def changed(self, given: Mapping[str, float], source: str = GIVEN) -> "Assumptions":
        """With other figures, by names such as `gpu.price`. Raises AssumptionError."""
        changed = self
        for name, value in given.items():
            side, _, figure = name.partition(".")
            if side not in ("pc", "gpu") or figure not in NAMES:
                known = ", ".join(NAMES)
                raise AssumptionError(f"there is no assumption {name!r}; there are pc.X and gpu.X, X of {known}")
            if value < 0 or (value == 0 and figure in _ABOVE_0) or (figure == "used" and value > 1):
                raise AssumptionError(f"{name} cannot be {value:g}")
            machine = replace(getattr(changed, side), **{figure: value})
            changed = replace(changed, **{side: machine}, sources={**changed.sources, name: source})
        return changed


NAMES = tuple(one.name for one in fields(Machine))
_ABOVE_0 = ("life_months", "hours", "used", "tokens_per_s", "streams")

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
"""In yuan: a server with an A10 that is bought, against PCs that are there."""


def parse_assumption(text: str) -> tuple[str, float]:
    """Reads `gpu.price=15000`. Raises AssumptionError."""
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise AssumptionError(f"{text!r} is no assumption: write it like gpu.price=15000") from None


def read_assumptions(path: Path) -> dict[str, float]:
    """A YAML file of `pc:` and `gpu:`, each with its figures. Raises AssumptionError, OSError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {f"{side}.{name}": float(value) for side, given in content.items() for name, value in given.items()}
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise AssumptionError(f"{path} holds no assumptions: {error}") from None


@dataclass(frozen=True, slots=True)
class Side:
    """One side at one load. machines: that it needs. month: what they cost. per_million: tokens that are made."""

    machines: int
    month: float
    per_million: float


def side(machine: Machine, tokens: float) -> Side:
    """What so many tokens a month take."""
    count = machine.needed(tokens)
    return Side(count, count * machine.month, count * machine.month / tokens * 1e6)


@dataclass(frozen=True, slots=True)
class BreakEven:
    """The least load at which the server is the cheaper. pcs: as many PCs could no longer do it for less.

    tokens: a month. tokens_per_s: in the hours of use. streams: at a time, as the PCs carry them.
    """

    pcs: int
    gpus: int
    tokens: float
    tokens_per_s: float
    streams: float


def break_even(pc: Machine, gpu: Machine) -> BreakEven | None:
    """None where PCs are the cheaper at every load that so many machines carry."""
    for pcs in range(_MOST_MACHINES):
        # One token more than `pcs` PCs make: one more of them is needed.
        tokens = pcs * pc.tokens
        gpus = math.floor(tokens / gpu.tokens + 1e-9) + 1
        if gpus * gpu.month < (pcs + 1) * pc.month:
            return BreakEven(pcs + 1, gpus, tokens, pcs * pc.tokens_per_s, pcs * pc.streams)
    return None


def loads(assumed: Assumptions) -> Iterator[float]:
    """Tokens a month at which both sides are worth a look: one PC, the turn, one server, and between."""
    pc, gpu = assumed.pc, assumed.gpu
    marks = {pc.tokens, gpu.tokens, 10 * pc.tokens, 10 * gpu.tokens}
    if (at := break_even(pc, gpu)) is not None and at.tokens:
        marks |= {at.tokens, at.tokens * 1.001}
    yield from sorted(marks)


def as_dict(assumed: Assumptions) -> dict[str, Any]:
    """All of it, as JSON has it."""
    pc, gpu = assumed.pc, assumed.gpu
    at = break_even(pc, gpu)
    return {
        "assumptions": {
            f"{name}.{figure}": {"value": getattr(machine, figure), "source": assumed.source(f"{name}.{figure}")}
            for name, machine in (("pc", pc), ("gpu", gpu))
            for figure in NAMES
        },
        "full_load": {
            name: {"month": machine.month, "tokens_a_month": machine.tokens, "per_million": machine.per_million}
            for name, machine in (("pc", pc), ("gpu", gpu))
        },
        "loads": [
            {"tokens_a_month": tokens, "pc": _told(side(pc, tokens)), "gpu": _told(side(gpu, tokens))}
            for tokens in loads(assumed)
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


def _told(one: Side) -> dict[str, float]:
    return {"machines": one.machines, "month": one.month, "per_million": one.per_million}
