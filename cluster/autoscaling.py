"""Autoscaling of a model: enough replicas to compute all waiting tokens within a target time, at their measured pace.

Serve's controller calls `PredictedWait` periodically and applies the delays of the settings to its result: it adds
replicas at once, and removes them only after the policy has asked for fewer for a while. Load that fluctuates faster
than that keeps its replicas. The policy reads the metrics that replicas report (`record_autoscaling_stats`). Routers
report the tokens waiting in them with each request that they send to a replica.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cluster.scaling_history import history
from cluster.scaling_metrics import Decision, Reason, publish
from cluster.settings import OfficeHours

TOKENS = "tokens"
"""Metric: tokens that a replica still has to compute."""
PACE = "pace"
"""Metric: tokens per second that a replica computes under load."""
QUEUED, REPORTED_AT = "queued.", "heard."
"""Metric prefixes, followed by a router's name: tokens that wait in it, and the Unix time of its report."""
QUEUE_REPORT_TTL_S = 10.0
"""Lifetime of a router's report, in seconds. A router with a nonempty queue reports more often than that."""
_MAX_SHARE_TO_SHRINK = 0.8
"""Replicas are removed only if the rest would need at most this share of the target time."""


@dataclass(frozen=True, slots=True)
class LoadSample:
    """The load that replicas have reported.

    tokens: still to be computed, those queued in routers included. pace: tokens per second of a replica, on average.
    replicas: number of replicas that have reported a pace.
    """

    tokens: float
    pace: float
    replicas: int


class PredictedWait:
    """Serve's autoscaling policy for the engines of a model."""

    def __init__(self, model: str, target_wait_s: float, office_hours: Sequence[Mapping[str, Any]] = ()) -> None:
        """model: name for the metrics. office_hours: as in the settings, as JSON objects."""
        self._model = model
        self._target_wait_s = target_wait_s
        self._office_hours = [OfficeHours.model_validate(hours) for hours in office_hours]

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The desired number of replicas, and an empty policy state. context: Serve's AutoscalingContext."""
        current = context.target_num_replicas
        sample = sample_of({name: latest(series) for name, series in (context.raw_metrics or {}).items()})
        scheduled = max((hours.replicas for hours in self._office_hours if hours.covers(datetime.now())), default=0)
        by_load = desired_replicas(sample, current, self._target_wait_s)
        minimum, maximum = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        desired = min(max(by_load, scheduled, minimum), maximum)
        decision = Decision(
            self._model,
            waiting_tokens=sample.tokens,
            predicted_wait_s=predicted_wait_s(sample),
            target_wait_s=self._target_wait_s,
            replicas=current,
            desired=desired,
            min_replicas=minimum,
            max_replicas=maximum,
            office_hours=scheduled,
            reason=_reason(by_load, scheduled, minimum, maximum) if sample.pace or desired != current else "unknown",
        )
        publish(decision)
        history().note(decision)
        return desired, {}


def _reason(by_load: int, scheduled: int, minimum: int, maximum: int) -> Reason:
    """Which of these numbers of replicas determines the result."""
    if max(by_load, scheduled, minimum) > maximum:
        return "max"
    if by_load > max(scheduled, minimum):
        return "load"
    return "office_hours" if scheduled > minimum else "min"


def predicted_wait_s(sample: LoadSample) -> float:
    """Seconds that the replicas need for all waiting tokens. 0 while no pace is known."""
    return sample.tokens / (sample.pace * sample.replicas) if sample.pace and sample.replicas else 0.0


def desired_replicas(sample: LoadSample, current: int, target_wait_s: float) -> int:
    """Replicas needed to compute all waiting tokens within the target; the current ones while no pace is known."""
    if not sample.pace:
        return current
    needed = math.ceil(sample.tokens / (sample.pace * target_wait_s))
    if needed >= current:
        return max(needed, 0)
    return min(current, math.ceil(sample.tokens / (sample.pace * target_wait_s * _MAX_SHARE_TO_SHRINK)))


def sample_of(metrics: Mapping[str, Mapping[Any, float]]) -> LoadSample:
    """The load in the metrics. metrics: value by metric name, then by the replica that reported it."""
    paces = [pace for pace in metrics.get(PACE, {}).values() if pace > 0]
    queued: dict[str, tuple[float, float]] = {}
    for name, by_replica in metrics.items():
        if not name.startswith(QUEUED):
            continue
        router = name.removeprefix(QUEUED)
        times = metrics.get(f"{REPORTED_AT}{router}", {})
        # A router reports to each replica that it sends a request to; only its latest report counts.
        queued[router] = max((times.get(replica, 0.0), tokens) for replica, tokens in by_replica.items())
    newest = max((reported for reported, _ in queued.values()), default=0.0)
    waiting = sum(tokens for reported, tokens in queued.values() if newest - reported < QUEUE_REPORT_TTL_S)
    tokens = sum(metrics.get(TOKENS, {}).values()) + waiting
    return LoadSample(tokens, sum(paces) / len(paces) if paces else 0.0, len(paces))


def latest(series: Mapping[Any, Sequence[Any]]) -> dict[Any, float]:
    """The last value of each replica's series."""
    return {replica: float(points[-1].value) for replica, points in series.items() if points}
