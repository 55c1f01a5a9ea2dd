"""How long prompts and answers are: always the same, between two bounds, or drawn from a log-normal distribution."""

import math
import random
from dataclasses import dataclass

_WIDEST = 4.0
"""A log-normal draw is kept within so many standard deviations."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths in tokens. sigma 0: evenly between low and high. Otherwise log-normal, with `low` as its median."""

    low: int
    high: int
    sigma: float = 0.0

    def draw(self, chance: random.Random) -> int:
        if not self.sigma:
            return chance.randint(self.low, self.high)
        wide = max(-_WIDEST, min(_WIDEST, chance.gauss(0, 1)))
        return max(1, round(self.low * math.exp(self.sigma * wide)))

    @property
    def mean(self) -> float:
        return self.low * math.exp(self.sigma**2 / 2) if self.sigma else (self.low + self.high) / 2

    def __str__(self) -> str:
        if self.sigma:
            return f"lognormal:{self.low}:{self.sigma:g}"
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


def parse_lengths(text: str) -> Lengths:
    """Reads `200`, `100-400` or `lognormal:200:0.6` (median, sigma). Raises ValueError in words for a user."""
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
        raise ValueError(f"{text!r} is no length: tokens are at least 1, and the second bound is not below the first")
    return lengths
