"""Statistics of one load: distributions in bounded memory, and rates."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cluster.bench.client import Outcome
from cluster.bench.load import Load

_GROWTH = 1.005
_MIN_S = 1e-6
_MAX_ERROR_KINDS = 20
_OTHER = "other errors"


class Distribution:
    """A distribution of times in seconds, counted in buckets that grow by 0.5 %.

    So any number of requests takes the same memory, and a percentile is off by at most 0.25 %.
    """

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0

    def add(self, seconds: float) -> None:
        self._buckets[round(math.log(max(seconds, _MIN_S)) / math.log(_GROWTH))] += 1
        self.count += 1

    def at(self, share: float) -> float:
        """The percentile (nearest rank) for a share between 0 and 1; 0 where nothing was counted."""
        rank, total = max(1, math.ceil(share * self.count)), 0
        for bucket in sorted(self._buckets):
            total += self._buckets[bucket]
            if total >= rank:
                return float(_GROWTH**bucket)
        return 0.0

    def as_dict(self) -> dict[str, float]:
        """For JSON, in seconds."""
        return {f"p{round(100 * share)}": round(self.at(share), 6) for share in (0.5, 0.95, 0.99)}


@dataclass(slots=True)
class RunStats:
    """Statistics of one load on one server, between `began` and `until` on the clock of time.perf_counter.

    Requests that began in that time are counted, and the tokens that arrived in it.
    """

    load: Load
    began: float
    until: float = math.inf
    ttft: Distribution = field(default_factory=Distribution)
    tpot: Distribution = field(default_factory=Distribution)
    e2e: Distribution = field(default_factory=Distribution)
    late: Distribution = field(default_factory=Distribution)
    """How much later than scheduled each request was sent: the client's own delay."""
    ok: int = 0
    hits: int = 0
    ended: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    tokens: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    complete: bool = True
    """False where the run was interrupted."""

    def add(self, outcome: Outcome) -> None:
        """Counts a finished request."""
        if not outcome.error:
            self.tokens += outcome.completion * self._share_in_time(outcome)
            self.ended += self.began <= outcome.ended <= self.until
        if not self.began <= outcome.began <= self.until:
            return
        if outcome.error:
            kind = outcome.error if outcome.error in self.errors or len(self.errors) < _MAX_ERROR_KINDS else _OTHER
            self.errors[kind] += 1
            return
        self.ok += 1
        self.hits += outcome.hit
        self.prompt_tokens += outcome.prompt
        self.cached_tokens += outcome.cached
        self.output_tokens += outcome.completion
        self.e2e.add(outcome.seconds)
        if outcome.pieces:
            self.ttft.add(outcome.ttft_s)
        if (tpot := outcome.tpot_s) is not None:
            self.tpot.add(tpot)

    def _share_in_time(self, outcome: Outcome) -> float:
        """The share of an answer's tokens that arrived between `began` and `until`."""
        length = outcome.last - outcome.first
        if length <= 0:
            return float(self.began <= outcome.last <= self.until)
        return max(0.0, min(self.until, outcome.last) - max(self.began, outcome.first)) / length

    @property
    def seconds(self) -> float:
        return self.until - self.began

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def requests_per_s(self) -> float:
        return self.ended / self.seconds if self.seconds > 0 else 0.0

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON, times in seconds."""
        return {
            "seconds": round(self.seconds, 3),
            "whole": self.complete,
            "requests": self.ok,
            "failed": self.failed,
            "errors": dict(self.errors),
            "hits": self.hits,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "tokens_per_s": round(self.tokens_per_s, 3),
            "requests_per_s": round(self.requests_per_s, 4),
            "ttft_s": self.ttft.as_dict(),
            "tpot_s": self.tpot.as_dict(),
            "e2e_s": self.e2e.as_dict(),
            "client_late_s": self.late.as_dict(),
        }
