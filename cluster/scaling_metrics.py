"""What the autoscaling policy thinks, as metrics of the node on which Serve's controller runs.

Apart from the policy, which Serve sends by value (ray 2.60): metrics cannot be.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.multiprocess import MultiProcessCollector

Reason = Literal["load", "office_hours", "min", "max", "unknown"]
"""Why so many are wanted: what waits; the schedule; the settings' least or most; or as before, since no replica has
reported."""

_own = CollectorRegistry()


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy has decided for a model. replicas: that Serve aims at until now. least, most: by the settings.
    office_hours: that the schedule asks for at this hour."""

    model: str
    waiting_tokens: float
    predicted_wait_s: float
    target_wait_s: float
    replicas: int
    desired: int
    min_replicas: int
    max_replicas: int
    office_hours: int
    reason: Reason


def _gauge(name: str, text: str, *more: str) -> Gauge:
    labels = ["model", *more]
    # Not of the living alone: on Kubernetes what shows them does not see the controller's process.
    return Gauge(f"dray_autoscaling_{name}", text, labels, registry=_own, multiprocess_mode="mostrecent")


_GAUGES = {
    "waiting_tokens": _gauge(
        "waiting_tokens", "Tokens that are still to be computed, those of requests that wait for their turn too."
    ),
    "predicted_wait_s": _gauge(
        "predicted_wait_seconds", "Time that the replicas need for them, by the pace that they have shown."
    ),
    "target_wait_s": _gauge("target_wait_seconds", "Where they need longer than this, there are to be more."),
    "replicas": _gauge("replicas", "Replicas that Serve aims at."),
    "desired": _gauge("desired_replicas", "Replicas that the policy wants now."),
    "min_replicas": _gauge("min_replicas", "Replicas that there are at least, by the settings."),
    "max_replicas": _gauge("max_replicas", "Replicas that there are at most, by the settings."),
    "office_hours": _gauge(
        "office_hours_replicas", "Replicas that the schedule asks for at this hour; 0 outside of it."
    ),
}
_REASON = _gauge("reason", "1 for the reason why the policy wants so many.", "reason")
_DECIDED = _gauge("decided_timestamp_seconds", "Unix time of the last decision; an old one is of a model that was.")
_HOLDS_S = 60.0


def publish(decision: Decision) -> None:
    """Notes a decision."""
    for name, gauge in _GAUGES.items():
        gauge.labels(decision.model).set(getattr(decision, name))
    _DECIDED.labels(decision.model).set(time.time())
    for reason in get_args(Reason):
        _REASON.labels(decision.model, reason).set(reason == decision.reason)


def read_decisions(folder: Path) -> list[Decision]:
    """The last decision for each model that scales now. folder: of this node's metrics; only the controller's node has
    any."""
    files = [str(file) for file in folder.glob("gauge_mostrecent_*.db")]
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for metric in MultiProcessCollector.merge(files):  # type: ignore[no-untyped-call]
        for sample in metric.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    since = time.time() - _HOLDS_S
    scales = {labels["model"] for labels, decided in samples.get(_DECIDED._name, []) if decided > since}
    reasons = {
        labels["model"]: labels["reason"] for labels, value in samples.get("dray_autoscaling_reason", []) if value
    }
    found: dict[str, dict[str, Any]] = {model: {"reason": reason} for model, reason in reasons.items()}
    for field, gauge in _GAUGES.items():
        kind = Decision.__dataclass_fields__[field].type
        for labels, value in samples.get(gauge._name, []):
            found[labels["model"]][field] = int(value) if kind is int else value
    return [Decision(model, **values) for model, values in sorted(found.items()) if model in scales]
