"""The decisions of the autoscaling policy, as metrics of the node that runs Serve's controller.

This module is separate from the policy because Serve pickles the policy by value (ray 2.60), and metrics cannot be
pickled.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.multiprocess import MultiProcessCollector

Reason = Literal["load", "office_hours", "min", "max", "unknown"]
"""What determines the desired number of replicas: the waiting work, the office hours, or the minimum or maximum in the
settings. unknown: no replica has reported yet, so the number is kept."""

_own = CollectorRegistry()


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision of the policy for a model.

    replicas: Serve's target before this decision. min_replicas, max_replicas: from the settings.
    office_hours: the minimum of the current office hours; 0 outside them.
    """

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


def _gauge(name: str, documentation: str, *extra_labels: str) -> Gauge:
    labels = ["model", *extra_labels]
    # Not a "live" mode: on Kubernetes, the process that exports the metrics cannot see the controller's process.
    return Gauge(f"dray_autoscaling_{name}", documentation, labels, registry=_own, multiprocess_mode="mostrecent")


_GAUGES = {
    "waiting_tokens": _gauge("waiting_tokens", "Tokens still to be computed, including those of queued requests."),
    "predicted_wait_s": _gauge(
        "predicted_wait_seconds", "Seconds that the replicas need for the waiting tokens, at their measured pace."
    ),
    "target_wait_s": _gauge("target_wait_seconds", "Predicted wait in seconds above which replicas are added."),
    "replicas": _gauge("replicas", "Current target number of replicas in Serve."),
    "desired": _gauge("desired_replicas", "Number of replicas that the policy asks for."),
    "min_replicas": _gauge("min_replicas", "Minimum number of replicas from the settings."),
    "max_replicas": _gauge("max_replicas", "Maximum number of replicas from the settings."),
    "office_hours": _gauge(
        "office_hours_replicas", "Minimum number of replicas from the current office hours; 0 outside them."
    ),
}
_REASON = _gauge("reason", "1 for the reason behind the desired number of replicas, 0 for the others.", "reason")
_DECIDED_AT = _gauge(
    "decided_timestamp_seconds", "Unix time of the last decision; it stops advancing when the model no longer scales."
)
_DECISION_TTL_S = 60.0


def publish(decision: Decision) -> None:
    """Export a decision as metrics."""
    for name, gauge in _GAUGES.items():
        gauge.labels(decision.model).set(getattr(decision, name))
    _DECIDED_AT.labels(decision.model).set(time.time())
    for reason in get_args(Reason):
        _REASON.labels(decision.model, reason).set(reason == decision.reason)


def read_decisions(folder: Path) -> list[Decision]:
    """The last decision for each model that currently scales, sorted by model.

    folder: the metrics of this node. Empty on every node but the controller's.
    """
    files = [str(file) for file in folder.glob("gauge_mostrecent_*.db")]
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for metric in MultiProcessCollector.merge(files):  # type: ignore[no-untyped-call]
        for sample in metric.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    since = time.time() - _DECISION_TTL_S
    scaling = {labels["model"] for labels, decided_at in samples.get(_DECIDED_AT._name, []) if decided_at > since}
    reasons = {
        labels["model"]: labels["reason"] for labels, value in samples.get("dray_autoscaling_reason", []) if value
    }
    fields: dict[str, dict[str, Any]] = {model: {"reason": reason} for model, reason in reasons.items()}
    for field, gauge in _GAUGES.items():
        kind = Decision.__dataclass_fields__[field].type
        for labels, value in samples.get(gauge._name, []):
            fields[labels["model"]][field] = int(value) if kind is int else value
    return [Decision(model, **values) for model, values in sorted(fields.items()) if model in scaling]
