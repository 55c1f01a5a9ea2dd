"""A load, and how long it is measured."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Load:
    """Concurrent requests (`concurrency`), or requests per second that arrive as a Poisson process (`rate`)."""

    kind: Literal["concurrency", "rate"]
    value: float

    def __str__(self) -> str:
        return f"{self.value:g} at a time" if self.kind == "concurrency" else f"{self.value:g}/s"


@dataclass(frozen=True, slots=True)
class RunLength:
    """How long a load is measured: for `seconds`, or, where `requests` is not 0, for that many requests.

    warmup_s: the load runs this long before anything counts.
    """

    seconds: float
    requests: int
    warmup_s: float

    @property
    def max_requests(self) -> float:
        return self.requests or math.inf

    @property
    def limit_s(self) -> float:
        return math.inf if self.requests else self.seconds
