"""The encoder replica: one Serve replica with a lease of whole cores and its own embedding model or cross-encoder.

A call has no state between calls and releases the GIL, so it needs no process of its own.
"""

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Any

from ray import serve

from cluster import liveness
from cluster.autoscaling import PACE, TOKENS
from cluster.cores import pin_process
from cluster.models.folder import open_model
from cluster.node import Node
from cluster.serve_config import EngineArgs
from deployments.common.messages import EncoderInput, Ready, decode_inputs, encode
from deployments.engine.encoder.batches import EncoderBatches
from deployments.engine.encoder.model import EncoderModel
from deployments.engine.lease import wait_for_lease
from deployments.observability.logs import configure_logging
from deployments.observability.metrics import EngineMetrics

log = logging.getLogger("dray.encoder")

_WARM_UP = EncoderInput([0] * 64)


class EncoderReplica:
    """Computes vectors of texts, or scores of pairs of texts."""

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        """Leases cores, loads the model and runs a first inference. args: EngineArgs as JSON."""
        engine_args = EngineArgs.model_validate(args)
        configure_logging(engine_args.log_level)
        self._life = asyncio.create_task(liveness.show_life(Path(os.environ[liveness.FOLDER])))
        node = Node.here()
        model = open_model(engine_args.model, node.models_dir)
        name = serve.get_replica_context().replica_id.unique_id
        self._metrics = EngineMetrics(model.name, name)
        owner = f"{model.name}/{name}"
        self._lease = await wait_for_lease(engine_args.cores, node.core_lock_dir, owner, self._metrics.lease_missed.inc)
        # Before OpenVINO loads, because it counts its threads then.
        pin_process(self._lease.cpus)
        started = time.perf_counter()
        encoder = await asyncio.to_thread(EncoderModel, model, len(self._lease.cpus))
        loaded = time.perf_counter()
        await asyncio.to_thread(encoder.run, [_WARM_UP])
        self._batches = EncoderBatches(encoder)
        ready = Ready(loaded - started, time.perf_counter() - loaded, 0)
        self._metrics.started(self._lease.cpus, os.getpid(), ready)
        log.info("encoder ready", extra={"cpus": list(self._lease.cpus), "load_s": ready.load_s})

    async def run(self, payload: bytes) -> bytes:
        """The result for each input, as little-endian float32: a vector of length 1, or a cross-encoder's logits.

        payload: EncoderInputs. Both are lists in MessagePack.
        """
        return encode(await self._batches.run(decode_inputs(payload)))

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Input of the autoscaling policy (cluster.autoscaling)."""
        return {TOKENS: float(self._batches.waiting_tokens), PACE: self._batches.pace}

    def __del__(self) -> None:
        """Called by Serve when the replica stops."""
        self._metrics.gone()
        self._lease.release()
