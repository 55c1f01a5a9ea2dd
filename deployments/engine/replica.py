"""The engine replica: one Serve replica with a lease of whole cores and one engine process pinned to them."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from ray import serve

from cluster import liveness
from cluster.autoscaling import PACE, QUEUE_REPORT_TTL_S, QUEUED, REPORTED_AT, TOKENS
from cluster.cores import check_affinity, repin
from cluster.models.folder import open_model
from cluster.node import Node
from cluster.serve_config import EngineArgs
from cluster.tuning.first_start import measure_once
from deployments.common.messages import (
    HEARTBEAT_S,
    KILLED_FROM_OUTSIDE,
    NO_PLACE,
    ROUTING_STATS,
    EngineRequest,
    EngineState,
    ReplicaStats,
    TokenBatch,
    decode_request,
    encode,
)
from deployments.engine.lease import wait_for_lease
from deployments.engine.model import config_for
from deployments.engine.process import EngineProcess, EngineStartError
from deployments.observability.logs import configure_logging
from deployments.observability.metrics import EngineMetrics
from deployments.observability.tracing import Traces, prefill_and_decode

log = logging.getLogger("dray.engine")

_WATCH_INTERVAL_S = 1.0
_AFFINITY_CHECK_INTERVAL_S = 15.0
_MAX_RESTARTS = 3
_HEALTHY_AFTER_S = 60.0
_LOADED_FRACTION = 4
"""An engine counts as loaded when it runs at least 1/4 of its maximum sequences."""
_PACE_WEIGHT = 0.1


class EngineReplica:
    """Streams token ids for prompts. Restarts its engine process when it dies or hangs, and keeps it on its cores."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, args: dict[str, Any]
    ) -> None:
        """Leases cores, measures how to multiply if nobody has, loads the model and runs a first inference.

        args: EngineArgs as JSON.

        Raises NotEnoughCores if no lease is free within a minute, EngineStartError if the model cannot be loaded.
        """
        engine_args = EngineArgs.model_validate(args)
        configure_logging(engine_args.log_level)
        self._life = asyncio.create_task(liveness.show_life(Path(os.environ[liveness.FOLDER])))
        node = Node.here()
        model = open_model(engine_args.model, node.models_dir)
        self._name = serve.get_replica_context().replica_id.unique_id
        self._metrics = EngineMetrics(model.name, self._name)
        self._traces = Traces("dray-engine", self._name)
        owner = f"{model.name}/{self._name}"
        self._lease = await wait_for_lease(engine_args.cores, node.core_lock_dir, owner, self._metrics.lease_missed.inc)
        self._settings = model.settings
        await asyncio.to_thread(measure_once, model, node.models_dir, self._lease, node.data_dir)
        self._config = config_for(
            model, self._lease.cpus, isolate_prefixes=engine_args.isolate_prefixes, data_dir=node.data_dir
        )
        self._engine: EngineProcess | None = None
        self._running = asyncio.Event()
        self._restarts = 0
        self._last_sample = (0.0, 0, False)
        self._pace = 0.0
        await self._start()
        self._watcher = asyncio.create_task(self._watch())

    async def generate(self, payload: bytes) -> AsyncGenerator[bytes, None]:
        """Streams TokenBatch messages for an EngineRequest, both as MessagePack. Closing it cancels the generation.

        Waits while the engine process restarts.
        """
        request = decode_request(payload)
        yield encode(TokenBatch([], replica=self._name))
        deadline = time.monotonic() + self._settings.start_timeout_s
        while not self._running.is_set():
            if time.monotonic() > deadline or self._watcher.done():
                yield encode(TokenBatch([], "lost", reason=KILLED_FROM_OUTSIDE))
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._running.wait()
            yield encode(TokenBatch([]))
        assert self._engine is not None
        if request.may_refuse and self._engine.active >= self._settings.max_num_seqs:
            yield encode(TokenBatch([], "lost", reason=NO_PLACE))
            return
        stream = self._engine.generate(request)
        async with aclosing(self._traced(request, stream) if request.traceparent else stream) as batches:
            async for batch in batches:
                yield encode(batch)

    async def _traced(
        self, request: EngineRequest, stream: AsyncGenerator[TokenBatch, None]
    ) -> AsyncGenerator[TokenBatch, None]:
        attributes = {"dray.replica": self._name, "gen_ai.usage.input_tokens": len(request.prompt_ids)}
        with self._traces.begin("engine", request.traceparent, attributes) as span:
            async with aclosing(stream), aclosing(prefill_and_decode(span, stream)) as batches:
                async for batch in batches:
                    yield batch

    def check_health(self) -> None:
        """Called by Serve. Raises RuntimeError if the engine keeps dying, so that Serve replaces the replica."""
        if self._restarts > _MAX_RESTARTS or self._watcher.done():
            raise RuntimeError(f"the engine process of {self._name} keeps dying (restarts: {self._restarts})")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Input of the autoscaling policy (cluster.autoscaling)."""
        engine = self._engine
        stats = {TOKENS: float(engine.scaling_tokens if engine else 0), PACE: self._pace}
        for router, (tokens, at) in (engine.queues_since(time.time() - QUEUE_REPORT_TTL_S) if engine else {}).items():
            stats |= {f"{QUEUED}{router}": float(tokens), f"{REPORTED_AT}{router}": at}
        return stats

    def record_routing_stats(self) -> dict[str, bytes]:
        """Input of the routers' policy (deployments.routing.policy): ReplicaStats.

        As bytes: Serve's controller hashes and encodes the reports of all replicas for every router, several times a
        second, which takes twice as long with nested dicts.
        """
        engine, stats = self._engine, ReplicaStats(engine=EngineState(self._cpus, restarts=self._restarts))
        if engine is not None:
            load, pending = engine.load, engine.pending
            rate, used = round(load.decode_tokens_per_s, 1), round(load.kv_used, 2)
            running = sum(work.streams for work in pending.values())
            state = EngineState(self._cpus, running, rate, used, self._restarts)
            speed, places = load.prefill_tokens_per_s, self._settings.max_num_seqs
            stats = ReplicaStats(speed, self._kv_tokens, pending, load.evicted_before, state, places)
        return {ROUTING_STATS: encode(stats)}

    @property
    def _cpus(self) -> str:
        return ",".join(map(str, self._lease.cpus))

    async def __del__(self) -> None:
        """Called by Serve when the replica stops: ends the process, then frees the cores."""
        self._watcher.cancel()
        if self._engine is not None:
            await self._engine.stop()
        await asyncio.to_thread(self._traces.close)
        self._metrics.gone()
        self._lease.release()

    async def _start(self) -> None:
        self._engine, ready = await EngineProcess.start(
            self._config, timeout_s=self._settings.start_timeout_s, keep_open=self._lease.pass_fds
        )
        self._metrics.started(self._config.cpus, self._engine.pid, ready)
        self._kv_tokens = ready.kv_tokens
        self._pace = self._pace or ready.load.prefill_tokens_per_s
        self._running.set()
        log.info(
            "engine ready",
            extra={
                "cpus": list(self._config.cpus),
                "load_s": ready.load_s,
                "warmup_s": ready.warmup_s,
                "variant": self._config.variant,
                "multiplications": ready.multiplications,
            },
        )

    async def _watch(self) -> None:
        """Restarts a dead engine, kills a hung one, and pins one that was moved off its cores."""
        loop = asyncio.get_running_loop()
        affinity_checked_at = started_at = heartbeat_at = loop.time()
        while True:
            engine = self._engine
            assert engine is not None
            try:
                async with asyncio.timeout(_WATCH_INTERVAL_S):
                    await engine.closed.wait()
            except TimeoutError:
                self._metrics.report(engine.load, engine.active)
                self._measure(engine, loop.time())
                if loop.time() - heartbeat_at > HEARTBEAT_S:
                    heartbeat_at = loop.time()
                    engine.send_heartbeats()
                if engine.silent_s > min(engine.patience_s, self._settings.stall_timeout_s):
                    log.error("engine makes no progress; killing it", extra={"silent_s": engine.silent_s})
                    await engine.stop(stuck=True)
                elif loop.time() - affinity_checked_at > _AFFINITY_CHECK_INTERVAL_S:
                    affinity_checked_at = loop.time()
                    self._repin_if_moved(engine.pid)
                if self._restarts and loop.time() - started_at > _HEALTHY_AFTER_S:
                    self._restarts = 0
                continue
            self._running.clear()
            self._restarts += 1
            self._metrics.restarts.inc()
            log.error("engine process ended; restarting it", extra={"restarts": self._restarts})
            await engine.stop()
            if self._restarts > _MAX_RESTARTS:
                return
            try:
                await self._start()
            except EngineStartError as error:
                log.error("engine process failed to restart: %s", error)
            started_at = loop.time()

    def _measure(self, engine: EngineProcess, now: float) -> None:
        """Updates the pace: tokens per second that the engine computes while loaded, smoothed."""
        last_at, last_tokens, was_loaded = self._last_sample
        loaded = engine.active >= max(1, self._settings.max_num_seqs // _LOADED_FRACTION)
        self._last_sample = (now, engine.computed_tokens, loaded)
        if was_loaded and loaded and engine.computed_tokens >= last_tokens:
            self._pace += ((engine.computed_tokens - last_tokens) / (now - last_at) - self._pace) * _PACE_WEIGHT

    def _repin_if_moved(self, pid: int) -> None:
        # The kubelet may rewrite a container's cpuset, which resets every thread's affinity.
        if not check_affinity(self._config.cpus, pid):
            self._metrics.moved.inc()
            log.warning("engine was off its cores; pinned it again", extra={"cpus": list(self._config.cpus)})
            repin(self._config.cpus, pid)
