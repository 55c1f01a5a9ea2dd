"""The engine replica: one Serve replica, one lease of whole cores, one engine process pinned to them."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from ray import serve

from cluster.autoscaling import HEARD, PACE, QUEUE_HOLDS_S, QUEUED, TOKENS
from cluster.cores import check_affinity, repin
from cluster.models.folder import open_model
from cluster.node import Node
from cluster.serve_config import EngineArgs
from deployments.common.messages import (
    HEARTBEAT_S,
    KILLED_FROM_OUTSIDE,
    EngineRequest,
    ReplicaStats,
    TokenBatch,
    decode_request,
    encode,
)
from deployments.engine.lease import wait_for_lease
from deployments.engine.process import EngineProcess, EngineStartError, config_for
from deployments.observability.metrics import EngineMetrics, configure_logging
from deployments.observability.tracing import Traces, prefill_and_decode

log = logging.getLogger("dray.engine")

_LOOK_S = 1.0
_AFFINITY_LOOK_S = 15.0
_MAX_RESTARTS = 3
_HEALTHY_AFTER_S = 60.0
_WELL_LOADED = 4
"""An engine is where it runs one in so many of the sequences that it could."""
_PACE_WEIGHT = 0.1


class EngineReplica:
    """Streams token ids for prompts; keeps its engine process alive, making progress and on its cores."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, args: dict[str, Any]
    ) -> None:
        """Ready when this returns: cores leased, model loaded, first inference done. args: EngineArgs as JSON has them.

        Raises NotEnoughCores when no lease can be had within a minute, EngineStartError when the model
        cannot be loaded.
        """
        given = EngineArgs.model_validate(args)
        configure_logging(given.log_level)
        node = Node.here()
        model = open_model(given.model, node.models_dir)
        self._name = serve.get_replica_context().replica_id.unique_id
        self._metrics = EngineMetrics(model.name, self._name)
        self._traces = Traces("dray-engine", self._name)
        owner = f"{model.name}/{self._name}"
        self._lease = await wait_for_lease(given.cores, node.core_lock_dir, owner, self._metrics.lease_missed.inc)
        self._chosen = model.settings
        self._config = config_for(model, self._lease.cpus)
        self._engine: EngineProcess | None = None
        self._running = asyncio.Event()
        self._restarts = 0
        self._measured = (0.0, 0, False)
        self._pace = 0.0
        await self._start()
        self._keeper = asyncio.create_task(self._keep())

    async def generate(self, payload: bytes) -> AsyncGenerator[bytes, None]:
        """Streams `Tokens` for a `Request`, both as MessagePack. A consumer that leaves cancels the generation.

        While the engine process is being restarted, this waits for it.
        """
        request = decode_request(payload)
        yield encode(TokenBatch([], replica=self._name))
        deadline = time.monotonic() + self._chosen.start_timeout_s
        while not self._running.is_set():
            if time.monotonic() > deadline or self._keeper.done():
                yield encode(TokenBatch([], "lost", reason=KILLED_FROM_OUTSIDE))
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._running.wait()
            yield encode(TokenBatch([]))
        assert self._engine is not None
        stream = self._engine.generate(request)
        async with aclosing(self._traced(request, stream) if request.traceparent else stream) as told:
            async for tokens in told:
                yield encode(tokens)

    async def _traced(
        self, request: EngineRequest, stream: AsyncGenerator[TokenBatch, None]
    ) -> AsyncGenerator[TokenBatch, None]:
        known = {"dray.replica": self._name, "gen_ai.usage.input_tokens": len(request.prompt_ids)}
        with self._traces.begin("engine", request.traceparent, known) as span:
            async with aclosing(stream), aclosing(prefill_and_decode(span, stream)) as told:
                async for tokens in told:
                    yield tokens

    def check_health(self) -> None:
        """Called by Serve; an engine that dies again and again makes the replica unhealthy, so Serve replaces it."""
        if self._restarts > _MAX_RESTARTS or self._keeper.done():
            raise RuntimeError(f"engine process of {self._name} does not stay up ({self._restarts} restarts)")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaling policy reads of this replica (cluster.autoscaling)."""
        engine = self._engine
        waiting = engine.waiting.values() if engine else ()
        told = {TOKENS: float(sum(one.prompt_tokens + one.completion_tokens for one in waiting)), PACE: self._pace}
        for router, (tokens, heard) in (engine.queues_since(time.time() - QUEUE_HOLDS_S) if engine else {}).items():
            told |= {f"{QUEUED}{router}": float(tokens), f"{HEARD}{router}": heard}
        return told

    def record_routing_stats(self) -> dict[str, Any]:
        """What the routers choose replicas by (deployments.routing.policy)."""
        engine = self._engine
        standing = (
            ReplicaStats(engine.load.prefill_tokens_per_s, self._kv_tokens, engine.waiting)
            if engine
            else ReplicaStats()
        )
        told: dict[str, Any] = msgspec.to_builtins(standing)
        return told

    async def __del__(self) -> None:
        """Serve calls this when the replica stops: the process ends, then the cores are free."""
        self._keeper.cancel()
        if self._engine is not None:
            await self._engine.stop()
        await asyncio.to_thread(self._traces.close)
        self._metrics.gone()
        self._lease.release()

    async def _start(self) -> None:
        self._engine, ready = await EngineProcess.start(
            self._config, timeout_s=self._chosen.start_timeout_s, keep_open=self._lease.pass_fds
        )
        self._metrics.started(self._config.cpus, self._engine.pid, ready)
        self._kv_tokens = ready.kv_tokens
        self._pace = self._pace or ready.load.prefill_tokens_per_s
        self._running.set()
        log.info(
            "engine ready",
            extra={"cpus": list(self._config.cpus), "load_s": ready.load_s, "warmup_s": ready.warmup_s},
        )

    async def _keep(self) -> None:
        """Watches the engine: restarts a dead one, kills a stuck one, pins one that was moved."""
        loop = asyncio.get_running_loop()
        looked = began = told = loop.time()
        while True:
            engine = self._engine
            assert engine is not None
            try:
                async with asyncio.timeout(_LOOK_S):
                    await engine.closed.wait()
            except TimeoutError:
                self._metrics.report(engine.load, engine.active)
                self._measure(engine, loop.time())
                if loop.time() - told > HEARTBEAT_S:
                    told = loop.time()
                    engine.tell_alive()
                if engine.silent_s > self._chosen.stall_timeout_s:
                    log.error("engine makes no progress; killing it", extra={"silent_s": engine.silent_s})
                    await engine.stop(stuck=True)
                elif loop.time() - looked > _AFFINITY_LOOK_S:
                    looked = loop.time()
                    self._hold_cores(engine.pid)
                if self._restarts and loop.time() - began > _HEALTHY_AFTER_S:
                    self._restarts = 0
                continue
            self._running.clear()
            self._restarts += 1
            self._metrics.restarts.inc()
            log.error("engine process ended; starting another", extra={"restarts": self._restarts})
            await engine.stop()
            if self._restarts > _MAX_RESTARTS:
                return
            try:
                await self._start()
            except EngineStartError as error:
                log.error("engine process did not start again: %s", error)
            began = loop.time()

    def _measure(self, engine: EngineProcess, now: float) -> None:
        """Smooths the tokens a second that the engine computes while it is well loaded: what it can do."""
        before, loaded = self._measured, engine.active >= max(1, self._chosen.max_num_seqs // _WELL_LOADED)
        self._measured = (now, engine.computed, loaded)
        if before[2] and loaded and engine.computed >= before[1]:
            self._pace += ((engine.computed - before[1]) / (now - before[0]) - self._pace) * _PACE_WEIGHT

    def _hold_cores(self, pid: int) -> None:
        # The kubelet may rewrite a container's cpuset, which resets every thread's affinity.
        if not check_affinity(self._config.cpus, pid):
            self._metrics.moved.inc()
            log.warning("engine was moved off its cores; pinning it again", extra={"cpus": list(self._config.cpus)})
            repin(self._config.cpus, pid)
