"""The engine replica: one Serve replica, one lease of whole cores, one engine process pinned to them."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ray import serve

from cluster.cores import check_affinity, repin
from cluster.models.folder import open_model
from cluster.serve_config import EngineArgs
from deployments.engine.lease import wait_for_lease
from deployments.engine.process import EngineProcess, EngineStartError, config_for
from deployments.engine.wire import Tokens, decode_request, encode
from deployments.telemetry import EngineMetrics, configure_logging

log = logging.getLogger("dray.engine")

_LOOK_S = 1.0
_AFFINITY_LOOK_S = 15.0
_MAX_RESTARTS = 3
_HEALTHY_AFTER_S = 60.0


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
        model = open_model(given.model, given.models_dir)
        self._name = serve.get_replica_context().replica_id.unique_id
        self._metrics = EngineMetrics(model.name, self._name)
        self._lease = await wait_for_lease(given.cores, given.core_lock_dir, f"{model.name}/{self._name}")
        self._chosen = model.settings
        self._config = config_for(model, self._lease.cpus)
        self._engine: EngineProcess | None = None
        self._running = asyncio.Event()
        self._restarts = 0
        await self._start()
        self._keeper = asyncio.create_task(self._keep())

    async def generate(self, payload: bytes) -> AsyncGenerator[bytes, None]:
        """Streams `Tokens` for a `Request`, both as MessagePack. A consumer that leaves cancels the generation.

        While the engine process is being restarted, this waits for it.
        """
        request = decode_request(payload)
        try:
            async with asyncio.timeout(self._chosen.start_timeout_s):
                await self._running.wait()
        except TimeoutError:
            yield encode(Tokens([], "lost"))
            return
        assert self._engine is not None
        async with aclosing(self._engine.generate(request)) as stream:
            async for tokens in stream:
                yield encode(tokens)

    def check_health(self) -> None:
        """Called by Serve; an engine that dies again and again makes the replica unhealthy, so Serve replaces it."""
        if self._restarts > _MAX_RESTARTS or self._keeper.done():
            raise RuntimeError(f"engine process of {self._name} does not stay up ({self._restarts} restarts)")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaling policy reads of this replica."""
        load = self._engine.load if self._engine else None
        return {
            "running": float(self._engine.active if self._engine else 0),
            "tokens_per_s": load.tokens_per_s if load else 0.0,
        }

    async def __del__(self) -> None:
        """Serve calls this when the replica stops: the process ends, then the cores are free."""
        self._keeper.cancel()
        if self._engine is not None:
            await self._engine.stop()
        self._metrics.gone()
        self._lease.release()

    async def _start(self) -> None:
        self._engine, ready = await EngineProcess.start(
            self._config, timeout_s=self._chosen.start_timeout_s, keep_open=self._lease.pass_fds
        )
        self._metrics.started(self._config.cpus, self._engine.pid, ready)
        self._running.set()
        log.info(
            "engine ready",
            extra={"cpus": list(self._config.cpus), "load_s": ready.load_s, "warmup_s": ready.warmup_s},
        )

    async def _keep(self) -> None:
        """Watches the engine: restarts a dead one, kills a stuck one, pins one that was moved."""
        loop = asyncio.get_running_loop()
        looked = began = loop.time()
        while True:
            engine = self._engine
            assert engine is not None
            try:
                async with asyncio.timeout(_LOOK_S):
                    await engine.closed.wait()
            except TimeoutError:
                self._metrics.report(engine.load, engine.active)
                if engine.silent_s > self._chosen.stall_timeout_s:
                    log.error("engine makes no progress; killing it", extra={"silent_s": engine.silent_s})
                    await engine.stop()
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
                return
            began = loop.time()

    def _hold_cores(self, pid: int) -> None:
        # The kubelet may rewrite a container's cpuset, which resets every thread's affinity.
        if not check_affinity(self._config.cpus, pid):
            self._metrics.moved.inc()
            log.warning("engine was moved off its cores; pinning it again", extra={"cpus": list(self._config.cpus)})
            repin(self._config.cpus, pid)
