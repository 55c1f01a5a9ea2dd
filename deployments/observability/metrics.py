"""Metrics and logs. Metric files of all processes of a node lie in one folder, so any router shows them all."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from deployments.common.messages import EngineLoad, Ready
from deployments.common.redis import RedisCallbacks
from deployments.common.types import Usage
from deployments.observability.tracing import current, trace_id

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)

T = TypeVar("T", bound=MetricWrapperBase)

_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {
    "message",
    "asctime",
    "taskName",
}


request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being served."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message and what `extra` named. No prompt, answer or key."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if identity := request_id.get():
            line["request_id"] = identity
        if trace := trace_id(current.get()):
            line["trace_id"] = trace
        line |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging(level: str) -> None:
    """Sends this process's `dray` logs to standard error as JSON lines, and what the exporter of traces has to say."""
    # Serve puts a buffer of a thousand records in the place of sys.stderr (ray 2.60, throughput mode).
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(JsonLines())
    for name in ("dray", "opentelemetry"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False


class Children(dict[tuple[str, ...], T]):
    """A metric's children by their labels; found in a quarter of the time that `labels` takes."""

    def __init__(self, metric: T) -> None:
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> T:
        self[labels] = child = self._metric.labels(*labels)
        return child


class RouterMetrics:
    """What one router counts. Names follow what vLLM's and Serve's dashboards use."""

    def __init__(self) -> None:
        own = CollectorRegistry()
        self.requests = Children(
            Counter(
                "dray_requests_total",
                "Requests by route, HTTP status, and the model and team where they are known.",
                ["route", "status", "model", "team"],
                registry=own,
            )
        )
        self.answers = Children(
            Counter(
                "dray_answer_cache_total",
                "Answers by how they came: hit, miss, join, bypass.",
                ["model", "team", "result"],
                registry=own,
            )
        )
        self.waiting = Gauge(
            "dray_requests_waiting",
            "Requests that wait for a place at the engines.",
            ["model"],
            registry=own,
            multiprocess_mode="livesum",
        )
        self.queue_time = Children(
            Histogram(
                "dray_request_queue_time_seconds",
                "Time that a choice waits for a place at the engines.",
                ["model", "team"],
                buckets=_SECONDS,
                registry=own,
            )
        )
        self.prompt_tokens = Children(
            Counter("dray_prompt_tokens_total", "Prompt tokens of answered requests.", ["model", "team"], registry=own)
        )
        self.cached_tokens = Counter(
            "dray_prompt_tokens_cached_total",
            "Prompt tokens found in the engines' prefix caches.",
            ["model"],
            registry=own,
        )
        self.completion_tokens = Children(
            Counter(
                "dray_completion_tokens_total",
                "Tokens generated, thinking included.",
                ["model", "team"],
                registry=own,
            )
        )
        self.time_to_first_token = Children(
            Histogram(
                "dray_time_to_first_token_seconds",
                "From request to first token, misses only.",
                ["model", "team"],
                buckets=_SECONDS,
                registry=own,
            )
        )
        self.time_per_output_token = Histogram(
            "dray_time_per_output_token_seconds",
            "Mean time between a request's tokens.",
            ["model"],
            buckets=_TOKEN_SECONDS,
            registry=own,
        )
        self.latency = Children(
            Histogram(
                "dray_request_seconds",
                "From request to last byte, by cache result.",
                ["model", "result"],
                buckets=_SECONDS,
                registry=own,
            )
        )
        self.carried_on = Counter(
            "dray_streams_carried_on_total",
            "Streams that another engine went on with.",
            ["model"],
            registry=own,
        )
        self.redis_faults = Counter(
            "dray_redis_faults_total",
            "Redis calls that failed or were too slow, by what it keeps: answers, teams.",
            ["store"],
            registry=own,
        )
        self.redis_circuit = Gauge(
            "dray_redis_circuit_open",
            "1 while a router makes no call to this Redis, since calls failed.",
            ["store"],
            registry=own,
            multiprocess_mode="livemax",
        )

    def watchers(self, store: str) -> RedisCallbacks:
        """What a store tells of its troubles."""
        self.redis_circuit.labels(store).set(0)
        return RedisCallbacks(
            self.redis_faults.labels(store).inc, lambda is_open: self.redis_circuit.labels(store).set(int(is_open))
        )

    def count_answer(self, model: str, team: str, usage: Usage, result: str, seconds: float) -> None:
        """Counts a complete answer; only those that an engine made count their tokens. team: as metrics call it."""
        self.answers[model, team, result].inc()
        self.latency[model, result].observe(seconds)
        if result not in ("hit", "join"):
            self.prompt_tokens[model, team].inc(usage.prompt_tokens)
            self.cached_tokens.labels(model).inc(usage.cached_tokens)
            self.completion_tokens[model, team].inc(usage.completion_tokens)


class EngineMetrics:
    """What one engine replica reports."""

    def __init__(self, model: str, replica: str) -> None:
        own = CollectorRegistry()
        names, values = ["model", "replica"], (model, replica)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, names, registry=own, multiprocess_mode="liveall").labels(*values)

        self._labels = values
        self._info = Gauge(
            "dray_engine_info",
            "1 for each engine process; its cores and process id.",
            [*names, "cpus", "engine_pid"],
            registry=own,
            multiprocess_mode="liveall",
        )
        self._running = gauge("dray_engine_running", "Sequences that the engine works on.")
        self._rate = gauge("dray_engine_tokens_per_second", "Tokens decoded a second, smoothed.")
        self._kv_used = gauge("dray_engine_kv_used_ratio", "Share of the KV cache in use.")
        self._kv_tokens = gauge("dray_engine_kv_tokens", "Tokens that the KV cache holds.")
        self._start = gauge("dray_engine_start_seconds", "Load and warm-up of the running engine process.")
        self._tokens = Counter(
            "dray_engine_tokens_total", "Tokens decoded, also those that nobody came to read.", names, registry=own
        ).labels(*values)
        self._decoded = 0
        self.restarts = Counter(
            "dray_engine_restarts_total", "Engine processes restarted.", names, registry=own
        ).labels(*values)
        self.moved = Counter(
            "dray_engine_affinity_faults_total",
            "Times an engine was found off its cores.",
            names,
            registry=own,
        ).labels(*values)
        self.lease_missed = Counter(
            "dray_engine_lease_faults_total",
            "Replicas that found no free cores in time, and did not start.",
            ["model"],
            registry=own,
        ).labels(model)
        self._running_info: tuple[str, ...] | None = None

    def started(self, cpus: Iterable[int], pid: int, ready: Ready) -> None:
        """Notes a new engine process."""
        if self._running_info is not None:
            self._info.labels(*self._running_info).set(0)
        self._decoded = 0
        self._running_info = (*self._labels, ",".join(map(str, cpus)), str(pid))
        self._info.labels(*self._running_info).set(1)
        self._kv_tokens.set(ready.kv_tokens)
        self._start.set(ready.load_s + ready.warmup_s)

    def report(self, load: EngineLoad, active: int) -> None:
        """Notes the engine's load."""
        self._running.set(active)
        self._rate.set(load.decode_tokens_per_s)
        self._tokens.inc(load.decoded_tokens - self._decoded)
        self._decoded = load.decoded_tokens
        self._kv_used.set(load.kv_used)

    def gone(self) -> None:
        """Takes this process's gauges out of what the node shows."""
        mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]


def exposition() -> bytes:
    """Metrics of every Dray process of this node, in Prometheus' text format."""
    _forget_dead_processes()
    registry = CollectorRegistry()
    registry.register(_Own())
    return generate_latest(registry)


def _forget_dead_processes() -> None:
    """Takes away the gauges of processes that were killed before they could do so themselves."""
    for file in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]


class _Own(MultiProcessCollector):
    """Dray's own metrics: Ray's processes inherit the folder and write there too."""

    def __init__(self) -> None:
        super().__init__(None)  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        return [metric for metric in super().collect() if metric.name.startswith("dray_")]  # type: ignore[no-untyped-call]
