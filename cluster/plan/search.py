"""How many replicas hold a target: the busiest time is simulated with more of them, and fewer, until that is known.

Of many replicas a sample is simulated, with its share of the load: replicas do not wait for each other, so a hundred
times as many under a hundred times the load have the same times. What a sample cannot show is the larger service's
smoother queue, so it errs on the safe side.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from cluster.plan.load import DAY_S, HOUR_S, Described, TraceRequest, busiest, thinned
from cluster.plan.profile import Header, StepTimes
from cluster.plan.service import Scaling, ServiceModel, Window, simulate

SAMPLE = 16
"""Replicas that are simulated at most."""
_REQUESTS = 6000
"""Requests that are looked at, about, in each try; of the day, three times as many."""
_SCALED = 4
"""Replicas that are simulated at least where their number changes over the day."""
_LEAST_S, _MOST_S = 60.0, 1800.0
_RUN_IN = 0.25
"""Before what is looked at comes so large a part of it again, in which the service fills."""
_EXACT = 64
"""Beyond so many replicas the answer is rounded up within a hundredth."""
_MOST_TIMES = 64
"""Where so many times the least number do not hold the target, no number does."""
_MOST_REFUSED = 0.001


@dataclass(frozen=True, slots=True)
class Target:
    """95th percentiles, in seconds."""

    ttft_s: float
    tpot_s: float

    def is_met(self, seen: Window) -> bool:
        """Whether this is good enough; hardly anything may be refused."""
        if seen.refused > _MOST_REFUSED * seen.requests:
            return False
        return seen.ttft.at(0.95) <= self.ttft_s and seen.tpot.at(0.95) <= self.tpot_s


class Demand(Protocol):
    """A load that can be had in part."""

    @property
    def peak(self) -> tuple[float, float, float]:
        """Its busiest time: begin and end in seconds, and requests a second in it."""

    @property
    def span(self) -> tuple[float, float]:
        """All of it: begin and end in seconds."""

    @property
    def count(self) -> float:
        """Requests in all."""

    def requests(self, begin: float, end: float, share: float) -> Iterator[TraceRequest]:
        """So large a share of those between two times."""


class UserDemand:
    """A day of users."""

    def __init__(self, described: Described, seed: int) -> None:
        self._described, self._seed = described, seed

    @property
    def peak(self) -> tuple[float, float, float]:
        hours = self._described.hours
        hour = hours.index(max(hours))
        middle = (hour + 0.5) * HOUR_S
        return middle - HOUR_S / 2, middle + HOUR_S / 2, hours[hour]

    @property
    def span(self) -> tuple[float, float]:
        return 0.0, DAY_S

    @property
    def count(self) -> float:
        return sum(self._described.hours) * HOUR_S

    def requests(self, begin: float, end: float, share: float) -> Iterator[TraceRequest]:
        return self._described.requests(begin, end, share, self._seed)


class TraceDemand:
    """What was asked once."""

    def __init__(self, trace: Sequence[TraceRequest]) -> None:
        self._trace = trace

    @property
    def span(self) -> tuple[float, float]:
        return self._trace[0].at, self._trace[-1].at

    @property
    def count(self) -> float:
        return len(self._trace)

    @property
    def peak(self) -> tuple[float, float, float]:
        begin, end = self.span
        if end - begin > _MOST_S:
            begin, end = busiest(self._trace, _MOST_S)
        inside = sum(begin <= one.at <= end for one in self._trace)
        return begin, end, inside / max(end - begin, 1.0)

    def requests(self, begin: float, end: float, share: float) -> Iterator[TraceRequest]:
        inside = (one for one in self._trace if begin <= one.at <= end)
        return inside if share >= 1 else thinned(inside, share)


@dataclass(frozen=True, slots=True)
class Trial:
    """What so many replicas did in the busiest time. share: of them and of the load that was simulated."""

    replicas: int
    share: float
    seen: Window


@dataclass(slots=True)
class Planner:
    """Plans for one load on one kind of machine. tried: every number of replicas that was simulated."""

    demand: Demand
    engine: Header
    times: StepTimes
    terms: ServiceModel
    tried: dict[int, Trial] = field(default_factory=dict)

    def peak(self, replicas: int) -> Trial:
        """The busiest time with so many replicas."""
        if replicas in self.tried:
            return self.tried[replicas]
        share = min(1.0, SAMPLE / replicas)
        begin, end, rate = self.demand.peak
        # Many short requests: part of the time shows it as well.
        length = min(end - begin, max(_LEAST_S, min(_MOST_S, _REQUESTS / max(rate * share, 1e-9))))
        start = (begin + end - length) / 2
        ran_in = max(self.demand.span[0], start - _RUN_IN * length)
        seen, before = Window(), Window()
        requests = self.demand.requests(ran_in, start + length, share)
        count = max(1, round(replicas * share))
        simulate(requests, self.engine, self.times, count, self.terms, lambda at: seen if at >= start else before)
        self.tried[replicas] = Trial(replicas, share, seen)
        return self.tried[replicas]

    def least(self, target: Target, on_try: Callable[[Trial], None]) -> int | None:
        """The fewest replicas that hold the target; None where no number does."""

        def holds(replicas: int) -> bool:
            tried = self.peak(replicas)
            on_try(tried)
            return target.is_met(tried.seen)

        low, high = 0, max(1, self._lower_bound())
        bound = _MOST_TIMES * high
        while not holds(high):
            low, high = high, 2 * high
            if high > bound:
                return None
        while high - low > max(1, high // 100 if high > _EXACT else 1):
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
        return high

    def _lower_bound(self) -> int:
        """Half of the replicas that could make the tokens of a few requests of the busiest time, always full."""
        begin, end, rate = self.demand.peak
        some = [one for one, _ in zip(self.demand.requests(begin, end, 1.0), range(200), strict=False)]
        if not some:
            return 1
        batch, size = self.engine.max_num_seqs, self.engine.max_num_batched_tokens
        prompt = self.times.step(0, 0, size, size * size // 2) / size
        context = sum(one.prompt + one.output / 2 for one in some) / len(some)
        token = self.times.step(batch, round(batch * context)) / batch
        one_s = sum(one.prompt * prompt + one.output * token for one in some) / len(some)
        known = len(some) - len({one.question for one in some if one.question != ""} or some)
        return max(1, int(rate * one_s * (1 - known / len(some)) / 2))


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of the day. at: its middle, in seconds. requests_per_s: of the whole load."""

    at: float
    requests_per_s: float
    replicas: float
    seen: Window


def day(
    planner: Planner, replicas: int, scaling: Scaling | None = None, slices: int = 48
) -> tuple[list[Slice], float, int]:
    """All of the load on so many replicas, or with scaling at most so many, by stretches; the share that was
    simulated; answers stored at its end."""
    begin, end = planner.demand.span
    # That replicas come and go is seen only of several.
    wanted, few = (20 * _REQUESTS, _SCALED) if scaling else (3 * _REQUESTS, 1)
    most = min(SAMPLE, max(few, math.floor(replicas * wanted / max(planner.demand.count, 1))))
    share = min(1.0, most / replicas)
    length = max((end - begin) / slices, 1.0)
    windows = [Window() for _ in range(slices)]

    def window(at: float) -> Window:
        return windows[min(slices - 1, int((at - begin) / length))]

    requests = planner.demand.requests(begin, end, share)
    count = max(1, round(replicas * share))
    bounds = replace(scaling, min_replicas=max(1, round(scaling.min_replicas * share))) if scaling else None
    service = simulate(requests, planner.engine, planner.times, count, planner.terms, window, bounds)
    found = [
        Slice(begin + (place + 0.5) * length, one.requests / length / share, (one.up or count) / share, one)
        for place, one in enumerate(windows)
    ]
    return found, share, round(service.stored / share)
