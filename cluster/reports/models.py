"""The models with their replicas, speed and scaling, as administrators read them."""

import math
from collections.abc import Iterable, Sequence

import msgspec

from cluster.records.activity import ModelState, ReplicaState, RouterActivity, ScalingChange

_FRESH_S = 30.0
"""Reports older than this say nothing of what waits now."""
REASONS = {
    "load": "the waiting tokens need them",
    "office_hours": "office_hours requires them",
    "min": "the minimum in the settings",
    "max": "the maximum in the settings",
    "unknown": "unchanged, because no replica has reported its speed yet",
}
"""Why the autoscaling policy asks for a number of replicas, by its reason."""


class Percentiles(msgspec.Struct, frozen=True):
    """Seconds. samples: how many answers they are of."""

    p50: float
    p90: float
    p99: float
    samples: int


class ShownReplica(msgspec.Struct, frozen=True):
    """A running replica. cpus: of its lease. running: sequences. kv_used: share of its KV cache. restarts: of its
    engine process."""

    replica: str
    cpus: str
    running: int
    tokens_per_s: float
    kv_used: float
    restarts: int


class ShownChange(msgspec.Struct, frozen=True):
    """A change of a model's number of replicas by autoscaling. why: in a sentence."""

    time: float
    before: int
    after: int
    reason: str
    waiting_tokens: float
    predicted_wait_s: float
    target_wait_s: float
    min_replicas: int
    max_replicas: int
    why: str


class ShownModel(msgspec.Struct, frozen=True):
    """A served model. waiting: requests in the queues of all routers. first_token_s, per_token_s: of the last answers
    that engines generated; null: there were none. replicas: empty for models that do not generate. changes: of the
    number of replicas, the last one first."""

    model: str
    task: str
    context_tokens: int
    waiting: int
    replicas: list[ShownReplica]
    first_token_s: Percentiles | None
    per_token_s: Percentiles | None
    changes: list[ShownChange]


def shown_models(reports: Sequence[RouterActivity], now: float) -> list[ShownModel]:
    """All models, in the order of the newest report, with the replicas of all Ray clusters. now: Unix time."""
    waiting: dict[str, int] = {}
    for report in reports:
        if report.time > now - _FRESH_S:
            for model in report.models:
                waiting[model.model] = waiting.get(model.model, 0) + model.waiting
    models: dict[str, ModelState] = {}
    changes: list[ScalingChange] = []
    for report in _newest(reports, now):
        changes += report.changes
        for model in report.models:
            known = models.get(model.model, msgspec.structs.replace(model, replicas=[]))
            replicas = [*known.replicas, *model.replicas]
            models[model.model] = msgspec.structs.replace(known, replicas=replicas)
    changes.sort(key=lambda change: change.time)
    return [_shown(model, waiting.get(name, 0), reports, changes) for name, model in models.items()]


def why(change: ScalingChange) -> str:
    """Why the number of replicas was changed, in a sentence."""
    text = REASONS.get(change.reason, change.reason)
    return (
        f"From {change.before} to {change.after}: {text}; {round(change.waiting_tokens):,} tokens were waiting, "
        f"{change.predicted_wait_s:.1f} s of work (target {change.target_wait_s:g} s)."
    )


def percentiles(samples: Iterable[float]) -> Percentiles | None:
    """Those of the samples; None if there are none."""
    ordered = sorted(samples)
    if not ordered:
        return None
    p50, p90, p99 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.9, 0.99))
    return Percentiles(p50, p90, p99, len(ordered))


def _newest(reports: Sequence[RouterActivity], now: float) -> list[RouterActivity]:
    """The newest report of each Ray cluster, the newest of all first. Only that one may be old: of other clusters, old
    reports are all that is left."""
    newest: dict[str, RouterActivity] = {}
    for report in sorted(reports, key=lambda report: report.time, reverse=True):
        if not newest or report.time > now - _FRESH_S:
            newest.setdefault(report.cluster, report)
    return list(newest.values())


def _shown(
    model: ModelState, waiting: int, reports: Sequence[RouterActivity], changes: Sequence[ScalingChange]
) -> ShownModel:
    samples = [sample for report in reports for sample in report.latencies.get(model.model, ())]
    own = [change for change in reversed(changes) if change.model == model.model]
    return ShownModel(
        model.model,
        model.task,
        model.context_tokens,
        waiting,
        [_replica(replica) for replica in model.replicas],
        percentiles(first for first, _ in samples),
        percentiles(each for _, each in samples if each is not None),
        [_change(change) for change in own],
    )


def _replica(replica: ReplicaState) -> ShownReplica:
    return ShownReplica(**msgspec.structs.asdict(replica))


def _change(change: ScalingChange) -> ShownChange:
    return ShownChange(
        change.time,
        change.before,
        change.after,
        change.reason,
        change.waiting_tokens,
        change.predicted_wait_s,
        change.target_wait_s,
        change.min_replicas,
        change.max_replicas,
        why(change),
    )
