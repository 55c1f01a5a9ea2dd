"""Prometheus metrics of routers and engine replicas.

All Dray processes of a node write their metrics to files in one folder, so any router can report them all.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from deployments.common.messages import EngineLoad, Ready
from deployments.common.redis import RedisCallbacks
from deployments.common.types import Usage
from deployments.observability.metric_files import take_space_at_once
from deployments.observability.vllm_names import with_vllm_names

take_space_at_once()

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)

T = TypeVar("T", bound=MetricWrapperBase)


class Children(dict[tuple[str, ...], T]):
    """A metric's children by their label values. A lookup takes a quarter of the time of the metric's `labels`."""

    def __init__(self, metric: T) -> None:
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> T:
        self[labels] = child = self._metric.labels(*labels)
        return child


class RouterMetrics:
    """The metrics of one router. Names follow those on the dashboards of vLLM and Serve."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.requests = Children(
            Counter(
                "dray_requests_total",
                "HTTP requests by route and status, and by model and team where they are known.",
                ["route", "status", "model", "team"],
                registry=registry,
            )
        )
        self.answers = Children(
            Counter(
                "dray_answer_cache_total",
                "Answers by cache result: curated, hit, join, miss, bypass.",
                ["model", "team", "result"],
                registry=registry,
            )
        )
        self.routed = Children(
            Counter(
                "dray_routed_requests_total",
                "Requests that another model answers than they ask for, by both, and by why: rule, down, busy, long.",
                ["model", "target", "reason"],
                registry=registry,
            )
        )
        self.waiting = Gauge(
            "dray_requests_waiting",
            "Requests of people waiting in the router for a free engine slot.",
            ["model"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.queue_time = Children(
            Histogram(
                "dray_request_queue_time_seconds",
                "Time a choice waits in the router for a free engine slot, batch work left out.",
                ["model", "team"],
                buckets=_SECONDS,
                registry=registry,
            )
        )
        self.prompt_tokens = Children(
            Counter(
                "dray_prompt_tokens_total",
                "Prompt tokens of requests that engines answered.",
                ["model", "team"],
                registry=registry,
            )
        )
        self.cached_tokens = Counter(
            "dray_prompt_tokens_cached_total",
            "Prompt tokens found in the engines' prefix caches.",
            ["model"],
            registry=registry,
        )
        self.completion_tokens = Children(
            Counter(
                "dray_completion_tokens_total",
                "Generated tokens, including thinking.",
                ["model", "team"],
                registry=registry,
            )
        )
        self.time_to_first_token = Children(
            Histogram(
                "dray_time_to_first_token_seconds",
                "Time from request to first token, cache misses only, batch work left out.",
                ["model", "team"],
                buckets=_SECONDS,
                registry=registry,
            )
        )
        self.time_per_output_token = Histogram(
            "dray_time_per_output_token_seconds",
            "Mean time between the tokens of a request.",
            ["model"],
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )
        self.latency = Children(
            Histogram(
                "dray_request_seconds",
                "Time from request to complete answer, by cache result.",
                ["model", "result"],
                buckets=_SECONDS,
                registry=registry,
            )
        )
        self.batch_lines = Children(
            Counter(
                "dray_batch_lines_total",
                "Lines of batches by how they ended: completed, failed, expired, cancelled.",
                ["state"],
                registry=registry,
            )
        )
        self.batch_lines_running = Gauge(
            "dray_batch_lines_running",
            "Lines of batches that routers have in progress.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.carried_on = Counter(
            "dray_streams_carried_on_total",
            "Streams that another engine continued after theirs was lost.",
            ["model"],
            registry=registry,
        )
        self.budget_used = Gauge(
            "dray_team_month_used_ratio",
            "Share of a month's limit (tokens, cost) that a team has used; not of teams that share a label.",
            ["team", "limit"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.redis_faults = Counter(
            "dray_redis_faults_total",
            "Redis calls that failed or timed out, by store: answers, teams.",
            ["store"],
            registry=registry,
        )
        self.redis_circuit = Gauge(
            "dray_redis_circuit_open",
            "1 while a router makes no calls to this Redis because earlier calls failed.",
            ["store"],
            registry=registry,
            multiprocess_mode="livemax",
        )

    def show_use(self, team: str, limit: str, share: float) -> None:
        """Shows the share of a month's limit that a team has used."""
        self.budget_used.labels(team, limit).set(share)

    def watchers(self, store: str) -> RedisCallbacks:
        """Callbacks that count the faults of a Redis store and show the state of its circuit."""
        self.redis_circuit.labels(store).set(0)
        return RedisCallbacks(
            self.redis_faults.labels(store).inc, lambda is_open: self.redis_circuit.labels(store).set(int(is_open))
        )

    def count_answer(self, model: str, team: str, usage: Usage, result: str, seconds: float) -> None:
        """Counts a complete answer; its tokens only if an engine generated them for this request.

        team: its metric label. result: hit, curated, miss, join or bypass. seconds: from the request to the last byte.
        """
        self.answers[model, team, result].inc()
        self.latency[model, result].observe(seconds)
        if result not in ("hit", "curated", "join"):
            self.prompt_tokens[model, team].inc(usage.prompt_tokens)
            self.cached_tokens.labels(model).inc(usage.cached_tokens)
            self.completion_tokens[model, team].inc(usage.completion_tokens)


class EngineMetrics:
    """The metrics of one engine replica."""

    def __init__(self, model: str, replica: str) -> None:
        registry = CollectorRegistry()
        names, values = ["model", "replica"], (model, replica)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, names, registry=registry, multiprocess_mode="liveall").labels(*values)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, names, registry=registry).labels(*values)

        self._labels = values
        self._info = Gauge(
            "dray_engine_info",
            "1 for each engine process, with its CPUs and process id.",
            [*names, "cpus", "engine_pid"],
            registry=registry,
            multiprocess_mode="liveall",
        )
        self._running = gauge("dray_engine_running", "Sequences that the engine is working on.")
        self._rate = gauge("dray_engine_tokens_per_second", "Decoded tokens per second, smoothed.")
        self._kv_used = gauge("dray_engine_kv_used_ratio", "Share of the KV cache in use.")
        self._kv_tokens = gauge("dray_engine_kv_tokens", "Capacity of the KV cache in tokens.")
        self._start = gauge("dray_engine_start_seconds", "Load and warm-up time of the running engine process.")
        self._tokens = counter("dray_engine_tokens_total", "Decoded tokens, including those that no client read.")
        self._guessed = counter("dray_engine_guessed_tokens_total", "Tokens that were guessed, and checked in a step.")
        self._accepted = counter(
            "dray_engine_accepted_tokens_total", "Guessed tokens that were right, so that each saved a step."
        )
        self._load = EngineLoad()
        """The last one reported."""
        self.restarts = counter("dray_engine_restarts_total", "Restarts of the engine process.")
        self.moved = counter(
            "dray_engine_affinity_faults_total", "Times an engine was found running off its own cores."
        )
        self.lease_missed = Counter(
            "dray_engine_lease_faults_total",
            "Replicas that did not start because no cores became free in time.",
            ["model"],
            registry=registry,
        ).labels(model)
        self._process_labels: tuple[str, ...] | None = None

    def started(self, cpus: Iterable[int], pid: int, ready: Ready) -> None:
        """Records a new engine process in place of the one before."""
        if self._process_labels is not None:
            self._info.labels(*self._process_labels).set(0)
        self._load = EngineLoad()
        self._process_labels = (*self._labels, ",".join(map(str, cpus)), str(pid))
        self._info.labels(*self._process_labels).set(1)
        self._kv_tokens.set(ready.kv_tokens)
        self._start.set(ready.load_s + ready.warmup_s)

    def report(self, load: EngineLoad, active: int) -> None:
        """Records the engine's load. active: sequences that it is working on."""
        self._running.set(active)
        self._rate.set(load.decode_tokens_per_s)
        self._tokens.inc(load.decoded_tokens - self._load.decoded_tokens)
        self._guessed.inc(load.guessed_tokens - self._load.guessed_tokens)
        self._accepted.inc(load.accepted_tokens - self._load.accepted_tokens)
        self._load = load
        self._kv_used.set(load.kv_used)

    def gone(self) -> None:
        """Removes this process's gauges from the node's metrics."""
        mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]


def exposition(*, vllm_names: bool = False) -> bytes:
    """The metrics of every Dray process of this node, in Prometheus' text format. vllm_names: under those names too."""
    _remove_dead_processes()
    registry = CollectorRegistry()
    registry.register(_DrayCollector(vllm_names))
    return generate_latest(registry)


def node_metrics() -> list[Metric]:
    """The same metrics, for those who read them here."""
    _remove_dead_processes()
    return list(_DrayCollector(vllm_names=False).collect())


def _remove_dead_processes() -> None:
    """Removes the gauges of processes that were killed before they could do so themselves."""
    for file in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]


class _DrayCollector(MultiProcessCollector):
    """Collects Dray's own metrics only: Ray's processes inherit the folder and write theirs there too."""

    def __init__(self, vllm_names: bool) -> None:
        super().__init__(None)  # type: ignore[no-untyped-call]
        self._vllm_names = vllm_names

    def collect(self) -> Iterable[Metric]:
        own = [metric for metric in super().collect() if metric.name.startswith("dray_")]  # type: ignore[no-untyped-call]
        return with_vllm_names(own) if self._vllm_names else own
