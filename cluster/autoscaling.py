"""How many replicas a model needs: as many as compute what waits within the target, by the pace that they have shown.

Serve calls `PredictedWait` in its controller every moment, and holds its answer against the delays that the settings
name: up at once, down only after it has wanted fewer for a while. So a load that comes and goes within that while keeps
its replicas. What it reads are the numbers that replicas report (`record_autoscaling_stats`); a router tells how much
waits in it with each request that it sends.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cluster.scaling_metrics import Decision, Reason, publish
from cluster.settings import OfficeHours

TOKENS = "tokens"
"""Tokens that a replica has still to compute."""
PACE = "pace"
"""Tokens a second that it computes under load."""
QUEUED, HEARD = "queued.", "heard."
"""With a router's name behind them: tokens that wait in it, and the Unix time at which it said so."""
QUEUE_HOLDS_S = 10.0
"""What a router said is taken for true so long: a queue in which anything waits is heard of often."""
_SPARE = 0.8
"""Fewer replicas are wanted only where they would have no more than this share of the target to do."""


@dataclass(frozen=True, slots=True)
class LoadSample:
    """What replicas have reported. tokens: to be computed, queued ones included. pace: tokens a second of one replica.

    replicas: that have reported.
    """

    tokens: float
    pace: float
    replicas: int


class PredictedWait:
    """The policy of one model's engines."""

    def __init__(self, model: str, target_wait_s: float, office_hours: Sequence[Mapping[str, Any]] = ()) -> None:
        """model: its name, for metrics. office_hours: as the settings have them."""
        self._model = model
        self._target_wait_s = target_wait_s
        self._hours = [OfficeHours.model_validate(one) for one in office_hours]

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Replicas wanted now. context: Serve's AutoscalingContext."""
        current = context.target_num_replicas
        seen = sample_of({name: latest(series) for name, series in (context.raw_metrics or {}).items()})
        least = max((one.replicas for one in self._hours if one.covers(datetime.now())), default=0)
        by_load = desired_replicas(seen, current, self._target_wait_s)
        always, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        wanted = min(max(by_load, least, always), most)
        publish(
            Decision(
                self._model,
                waiting_tokens=seen.tokens,
                predicted_wait_s=predicted_wait_s(seen),
                target_wait_s=self._target_wait_s,
                replicas=current,
                desired=wanted,
                min_replicas=always,
                max_replicas=most,
                office_hours=least,
                reason=_reason(by_load, least, always, most) if seen.pace else "unknown",
            )
        )
        return wanted, {}


def _reason(by_load: int, scheduled: int, least: int, most: int) -> Reason:
    """Which of them decides."""
    if max(by_load, scheduled, least) > most:
        return "max"
    if by_load > max(scheduled, least):
        return "load"
    return "office_hours" if scheduled > least else "min"


def predicted_wait_s(seen: LoadSample) -> float:
    """Seconds until the replicas will have computed all that waits."""
    return seen.tokens / (seen.pace * seen.replicas) if seen.pace and seen.replicas else 0.0


def desired_replicas(seen: LoadSample, current: int, target_wait_s: float) -> int:
    """Replicas that compute what waits within the target."""
    if not seen.pace:
        return current
    needed = math.ceil(seen.tokens / (seen.pace * target_wait_s))
    if needed >= current:
        return max(needed, 0)
    return min(current, math.ceil(seen.tokens / (seen.pace * target_wait_s * _SPARE)))


def sample_of(metrics: Mapping[str, Mapping[Any, float]]) -> LoadSample:
    """What the numbers say, each by its name and by the replica that reported it."""
    paces = [pace for pace in metrics.get(PACE, {}).values() if pace > 0]
    queued: dict[str, tuple[float, float]] = {}
    for name, by_replica in metrics.items():
        if not name.startswith(QUEUED):
            continue
        router = name.removeprefix(QUEUED)
        heard = metrics.get(f"{HEARD}{router}", {})
        # Each replica knows what the router said to it; the latest holds.
        queued[router] = max((heard.get(replica, 0.0), tokens) for replica, tokens in by_replica.items())
    newest = max((heard for heard, _ in queued.values()), default=0.0)
    waiting = sum(tokens for heard, tokens in queued.values() if newest - heard < QUEUE_HOLDS_S)
    tokens = sum(metrics.get(TOKENS, {}).values()) + waiting
    return LoadSample(tokens, sum(paces) / len(paces) if paces else 0.0, len(paces))


def latest(series: Mapping[Any, Sequence[Any]]) -> dict[Any, float]:
    """The last value of each replica's series."""
    return {replica: float(points[-1].value) for replica, points in series.items() if points}
