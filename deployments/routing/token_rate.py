"""How many tokens a second a router's requests use."""

import time
from collections.abc import Callable

_SMOOTHING_S = 10.0


class TokenRate:
    """An exponential average over about ten seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens_per_s = 0.0
        self._noted_at = clock()

    def note(self, tokens: int) -> None:
        """These tokens were used since the last call."""
        now = self._clock()
        since, self._noted_at = now - self._noted_at, now
        self._tokens_per_s += (tokens / max(since, 1e-3) - self._tokens_per_s) * min(1.0, since / _SMOOTHING_S)

    def seconds_for(self, tokens: int) -> float:
        """How long so many tokens take at this rate; 0 before any was used."""
        return tokens / self._tokens_per_s if self._tokens_per_s else 0.0
