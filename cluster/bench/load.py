"""How much is asked, and for how long."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Load:
    """So many requests at a time (`concurrency`), or a second, in a Poisson stream (`rate`)."""

    kind: Literal["concurrency", "rate"]
    value: float

    def __str__(self) -> str:
        return f"{self.value:g} at a time" if self.kind == "concurrency" else f"{self.value:g}/s"


@dataclass(frozen=True, slots=True)
class RunLength:
    """How long: seconds, or until so many requests (0: as the seconds say). Before that comes the warm-up, under the
    same load, whose requests are not counted."""

    seconds: float
    requests: int
    warmup_s: float

    @property
    def most(self) -> float:
        return self.requests or math.inf

    @property
    def limit_s(self) -> float:
        return math.inf if self.requests else self.seconds
