"""How busy this node is: the few metrics that the status page shows, of all its Dray processes."""

from collections import defaultdict
from collections.abc import Iterable

import msgspec
from prometheus_client.metrics_core import Metric

_CACHED = ("hit", "curated", "join")
"""Results of answers that no engine made for their request."""


class ReplicaLoad(msgspec.Struct, frozen=True):
    """An engine replica.

    cpus: the hardware threads of its cores. tokens: decoded since it started. kv_used: share of the KV cache in use.
    """

    model: str
    replica: str
    cpus: tuple[int, ...]
    running: int
    tokens: int
    kv_used: float
    restarts: int


class NodeLoad(msgspec.Struct, frozen=True):
    """answers, cached: since Dray started, all of them and those from the cache. waiting: requests in the queues."""

    answers: int
    cached: int
    waiting: int
    replicas: tuple[ReplicaLoad, ...]


def node_load(metrics: Iterable[Metric]) -> NodeLoad:
    """The load, from the node's metrics. It has no team's name, unlike these."""
    answers: defaultdict[str, float] = defaultdict(float)
    of_replica: defaultdict[tuple[str, str], float] = defaultdict(float)
    engines: list[tuple[str, str, str]] = []
    waiting = 0.0
    for metric in metrics:
        for sample in metric.samples:
            if sample.name == "dray_answer_cache_total":
                answers[sample.labels["result"]] += sample.value
            elif sample.name == "dray_requests_waiting":
                waiting += sample.value
            elif sample.name == "dray_engine_info" and sample.value == 1:
                engines.append((sample.labels["model"], sample.labels["replica"], sample.labels["cpus"]))
            elif sample.name.startswith("dray_engine_") and "replica" in sample.labels:
                of_replica[sample.name, sample.labels["replica"]] += sample.value
    return NodeLoad(
        answers=int(sum(answers.values())),
        cached=int(sum(answers[result] for result in _CACHED)),
        waiting=int(waiting),
        replicas=tuple(_replica(*engine, of_replica) for engine in sorted(engines, key=_first_cpu)),
    )


def _replica(model: str, replica: str, cpus: str, values: defaultdict[tuple[str, str], float]) -> ReplicaLoad:
    return ReplicaLoad(
        model=model,
        replica=replica,
        cpus=tuple(int(cpu) for cpu in cpus.split(",")),
        running=int(values["dray_engine_running", replica]),
        tokens=int(values["dray_engine_tokens_total", replica]),
        kv_used=values["dray_engine_kv_used_ratio", replica],
        restarts=int(values["dray_engine_restarts_total", replica]),
    )


def _first_cpu(engine: tuple[str, str, str]) -> tuple[int, str]:
    _, replica, cpus = engine
    return int(cpus.partition(",")[0]), replica
