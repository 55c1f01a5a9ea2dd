"""Lengths of prompts and answers: constant, uniform between two bounds, or log-normal."""

import math
import random
from dataclasses import dataclass

_MAX_SIGMAS = 4.0
"""Log-normal draws are limited to this many standard deviations."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of lengths in tokens. sigma 0: uniform from low to high; else log-normal with the median `low`."""

    low: int
    high: int
    sigma: float = 0.0

    def draw(self, rng: random.Random) -> int:
        if not self.sigma:
            return rng.randint(self.low, self.high)
        deviation = max(-_MAX_SIGMAS, min(_MAX_SIGMAS, rng.gauss(0, 1)))
        return max(1, round(self.low * math.exp(self.sigma * deviation)))

    @property
    def mean(self) -> float:
        return self.low * math.exp(self.sigma**2 / 2) if self.sigma else (self.low + self.high) / 2

    def __str__(self) -> str:
        if self.sigma:
            return f"lognormal:{self.low}:{self.sigma:g}"
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


def parse_lengths(text: str) -> Lengths:
    """Parses `200`, `100-400` or `lognormal:200:0.6` (median, sigma). Raises ValueError with a message for the user."""
    try:
        if text.startswith("lognormal:"):
            _, median, sigma = text.split(":")
            lengths = Lengths(int(median), int(median), float(sigma))
        else:
            low, _, high = text.partition("-")
            lengths = Lengths(int(low), int(high or low))
    except ValueError:
        raise ValueError(f"{text!r} is no length: write 200, 100-400 or lognormal:200:0.6") from None
    if lengths.low < 1 or lengths.high < lengths.low or lengths.sigma < 0:
        raise ValueError(f"{text!r} is no length: it needs at least 1 token, and the upper bound last")
    return lengths
