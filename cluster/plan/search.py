"""How many replicas meet a target: simulates the busiest time with more and fewer replicas until that is known.

Of many replicas a sample is simulated, with its share of the load. Replicas do not wait for each other, so a hundred
times as many under a hundred times the load have the same times. A sample does not show the smoother queue of the
larger service, and chance weighs more in it; so `confirmed` simulates more in the end.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from cluster.bench.results import Distribution
from cluster.plan.load import DAY_S, HOUR_S, TraceRequest, UserLoad
from cluster.plan.profile import ProfiledEngine, StepTimes
from cluster.plan.service import Measurements, Scaling, ServiceModel, simulate
from cluster.plan.trace import Trace

SAMPLE = 16
"""Maximum number of replicas that are simulated."""
_LARGER = 4
"""So many times the sample is simulated in the end, to confirm what the sample found."""
_CONFIRMATIONS, _MORE_DIVISOR = 5, 50
"""So often a fiftieth of the replicas is added where the larger simulation misses the target."""
_REQUESTS = 6000
"""Approximate number of requests that are simulated for each number of replicas."""
_DAY_FACTOR, _SCALING_DAY_FACTOR = 3, 20
"""So many times as many requests are simulated of a day; and of a day with autoscaling."""
_MIN_SCALED = 4
"""Minimum number of replicas that are simulated with autoscaling: of fewer, no change would show."""
_MIN_PEAK_S, _MAX_PEAK_S = 60.0, 1800.0
_WARM_UP = 0.25
"""Share of the simulated time that is simulated before it, in which the service fills."""
_EXACT_REPLICAS = 64
"""Above this the number of replicas is rounded up, by at most a hundredth."""
_MAX_FACTOR = 64
"""If so many times the lower bound do not meet the target, no number does."""
_MAX_REFUSED = 0.001


@dataclass(frozen=True, slots=True)
class Target:
    """95th percentiles, in seconds."""

    ttft_s: float
    tpot_s: float

    def is_met(self, seen: Measurements) -> bool:
        """Whether the times are within the target and at most one request in a thousand is refused."""
        if seen.refused > _MAX_REFUSED * seen.requests:
            return False
        return seen.ttft.at(0.95) <= self.ttft_s and seen.tpot.at(0.95) <= self.tpot_s


class Demand(Protocol):
    """A load of which a part can be simulated."""

    @property
    def peak(self) -> tuple[float, float, float]:
        """The busiest time: start and end in seconds, and its requests a second."""

    @property
    def span(self) -> tuple[float, float]:
        """The whole load: start and end in seconds."""

    @property
    def count(self) -> float:
        """Requests in total."""

    def requests(self, begin: float, end: float, share: float) -> Iterator[TraceRequest]:
        """A share of the requests between two times."""


class UserDemand:
    """A day of users."""

    def __init__(self, described: UserLoad, seed: int) -> None:
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
    """A recorded load."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    @property
    def span(self) -> tuple[float, float]:
        return float(self._trace.at[0]), float(self._trace.at[-1])

    @property
    def count(self) -> float:
        return len(self._trace)

    @cached_property
    def peak(self) -> tuple[float, float, float]:
        begin, end = self.span
        if end - begin > _MAX_PEAK_S:
            begin, end = self._trace.busiest_stretch(_MAX_PEAK_S)
        inside = int(((self._trace.at >= begin) & (self._trace.at <= end)).sum())
        return begin, end, inside / max(end - begin, 1.0)

    def requests(self, begin: float, end: float, share: float) -> Iterator[TraceRequest]:
        return self._trace.requests(begin, end, share)


@dataclass(frozen=True, slots=True)
class Trial:
    """The busiest time with a number of replicas. share: of the replicas and of the load that was simulated."""

    replicas: int
    share: float
    measured: Measurements


@dataclass(slots=True)
class Planner:
    """Plans for one load on one kind of machine. tried: the trial of every number of replicas that was simulated.

    sample: maximum number of replicas to simulate. requests: approximate number of requests in a trial.
    """

    demand: Demand
    engine: ProfiledEngine
    times: StepTimes
    service: ServiceModel
    tried: dict[int, Trial] = field(default_factory=dict)
    sample: int = SAMPLE
    requests: int = _REQUESTS

    def peak(self, replicas: int) -> Trial:
        """Simulates the busiest time with this many replicas."""
        if replicas in self.tried:
            return self.tried[replicas]
        share = min(1.0, self.sample / replicas)
        begin, end, rate = self.demand.peak
        # Where requests are short and many, a part of the time shows the same.
        length = min(end - begin, max(_MIN_PEAK_S, min(_MAX_PEAK_S, self.requests / max(rate * share, 1e-9))))
        start = (begin + end - length) / 2
        warm_up_start = max(self.demand.span[0], start - _WARM_UP * length)
        seen, warm_up = Measurements(), Measurements()
        requests = self.demand.requests(warm_up_start, start + length, share)
        count = max(1, round(replicas * share))
        simulate(requests, self.engine, self.times, count, self.service, lambda at: seen if at >= start else warm_up)
        self.tried[replicas] = Trial(replicas, share, seen)
        return self.tried[replicas]

    def fewest_replicas(self, target: Target, on_try: Callable[[Trial], None]) -> int | None:
        """The fewest replicas that meet the target; None where no number does. on_try: called with each trial."""

        def meets_target(replicas: int) -> bool:
            trial = self.peak(replicas)
            on_try(trial)
            return target.is_met(trial.measured)

        low, high = 0, max(1, self._lower_bound())
        limit = _MAX_FACTOR * high
        while not meets_target(high):
            low, high = high, 2 * high
            if high > limit:
                return None
        while high - low > max(1, high // 100 if high > _EXACT_REPLICAS else 1):
            middle = (low + high) // 2
            low, high = (low, middle) if meets_target(middle) else (middle, high)
        return high

    def _lower_bound(self) -> int:
        """Half of the replicas that could generate the tokens of the busiest time while always full.

        Estimated from its first 200 requests.
        """
        begin, end, rate = self.demand.peak
        some = [request for request, _ in zip(self.demand.requests(begin, end, 1.0), range(200), strict=False)]
        if not some:
            return 1
        batch, size = self.engine.max_num_seqs, self.engine.max_num_batched_tokens
        prompt_token_s = self.times.step(0, 0, size, size * size // 2) / size
        context = sum(request.prompt + request.output / 2 for request in some) / len(some)
        output_token_s = self.times.step(batch, round(batch * context)) / batch
        seconds = sum(request.prompt * prompt_token_s + request.output * output_token_s for request in some) / len(some)
        repeated = len(some) - len({request.question for request in some if request.question != ""} or some)
        return max(1, int(rate * seconds * (1 - repeated / len(some)) / 2))


@dataclass(frozen=True, slots=True)
class SampleError:
    """How far the times of the sample are from those of a larger part of the service that was simulated whole.

    replicas: of that part. ttft, tpot: of the 95th percentiles; 0.1: the sample's are 10 % longer.
    """

    replicas: int
    ttft: float
    tpot: float


def confirmed(
    planner: Planner, target: Target, replicas: int, on_try: Callable[[Trial], None]
) -> tuple[Trial, SampleError | None]:
    """Simulates a larger part of the service at its busiest time, with more replicas while that misses the target.

    Returns the last trial, and how far the sample was from it; None where all replicas had been simulated already.
    """
    trial = planner.peak(replicas)
    if trial.share >= 1:
        return trial, None
    size = min(replicas, _LARGER * planner.sample)
    # With as many requests more, the same stretch of time is simulated.
    larger = replace(planner, sample=size, requests=planner.requests * size // planner.sample, tried={})
    for _ in range(_CONFIRMATIONS):
        trial = larger.peak(replicas)
        on_try(trial)
        if target.is_met(trial.measured):
            break
        replicas += max(1, replicas // _MORE_DIVISOR)
    seen, whole = planner.peak(trial.replicas).measured, trial.measured
    return trial, SampleError(size, _difference(seen.ttft, whole.ttft), _difference(seen.tpot, whole.tpot))


def _difference(one: Distribution, whole: Distribution) -> float:
    return one.at(0.95) / whole.at(0.95) - 1 if whole.count else 0.0


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of the day. at: its middle, in seconds. requests_per_s: of the whole load."""

    at: float
    requests_per_s: float
    replicas: float
    measured: Measurements


def day(
    planner: Planner, replicas: int, scaling: Scaling | None = None, slices: int = 48
) -> tuple[list[Slice], float, int]:
    """Simulates the whole load on this many replicas; with scaling, on at most this many.

    Returns the day in slices, the share of it that was simulated, and the number of answers cached at its end.
    """
    begin, end = planner.demand.span
    factor, min_replicas = (_SCALING_DAY_FACTOR, _MIN_SCALED) if scaling else (_DAY_FACTOR, 1)
    affordable = math.floor(replicas * factor * planner.requests / max(planner.demand.count, 1))
    share = min(1.0, min(planner.sample, max(min_replicas, affordable)) / replicas)
    length = max((end - begin) / slices, 1.0)
    windows = [Measurements() for _ in range(slices)]

    def window(at: float) -> Measurements:
        return windows[min(slices - 1, int((at - begin) / length))]

    requests = planner.demand.requests(begin, end, share)
    count = max(1, round(replicas * share))
    scaled = replace(scaling, min_replicas=max(1, round(scaling.min_replicas * share))) if scaling else None
    service = simulate(requests, planner.engine, planner.times, count, planner.service, window, scaled)
    stretches = [
        Slice(begin + (index + 0.5) * length, seen.requests / length / share, (seen.up or count) / share, seen)
        for index, seen in enumerate(windows)
    ]
    return stretches, share, round(service.stored / share)
