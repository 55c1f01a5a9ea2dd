"""The embedding replica: one Serve replica with a lease of whole cores and its own embedding model.

An embedding call has no state between calls and releases the GIL, so it needs no process of its own.
"""

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Any

from ray import serve

from cluster import liveness
from cluster.cores import pin_process
from cluster.models.folder import open_model
from cluster.node import Node
from cluster.serve_config import EngineArgs
from deployments.common.messages import Ready, decode_texts, encode
from deployments.engine.lease import wait_for_lease
from deployments.engine.text_embedder import TextEmbedder
from deployments.observability.logs import configure_logging
from deployments.observability.metrics import EngineMetrics

log = logging.getLogger("dray.embedder")

_BATCH_SIZE = 16


class EmbedderReplica:
    """Computes vectors of texts."""

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
        self._lock = asyncio.Lock()
        started = time.perf_counter()
        self._embedder = await asyncio.to_thread(TextEmbedder, model, len(self._lease.cpus))
        loaded = time.perf_counter()
        await asyncio.to_thread(self._embedder.embed, ["warm-up"])
        ready = Ready(loaded - started, time.perf_counter() - loaded, 0)
        self._metrics.started(self._lease.cpus, os.getpid(), ready)
        log.info("embedder ready", extra={"cpus": list(self._lease.cpus), "load_s": ready.load_s})

    async def embed(self, payload: bytes) -> bytes:
        """Vectors of length 1 as little-endian float32. payload: texts. Both are lists in MessagePack."""
        texts = decode_texts(payload)
        vectors: list[bytes] = []
        for start in range(0, len(texts), _BATCH_SIZE):
            # One batch at a time, so that other requests need not wait for all texts of a large one.
            async with self._lock:
                batch = await asyncio.to_thread(self._embedder.embed, texts[start : start + _BATCH_SIZE])
            vectors += [vector.astype("<f4").tobytes() for vector in batch]
        return encode(vectors)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Empty: an embedder has no queue of tokens for the policy to count."""
        return {}

    def __del__(self) -> None:
        """Called by Serve when the replica stops."""
        self._metrics.gone()
        self._lease.release()
