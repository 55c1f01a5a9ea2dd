"""The embedding replica: one Serve replica with a lease of whole cores and its own embedding model.

Unlike a generation step, an embedding call releases the GIL, so it needs no process of its own.
"""

import asyncio
import logging
import os
import time
from array import array
from pathlib import Path
from typing import Any

from ray import serve

from cluster import liveness
from cluster.cores import pin_process
from cluster.models.folder import ServedModel, open_model, read_json
from cluster.node import Node
from cluster.serve_config import EngineArgs
from deployments.common.messages import Ready, decode_texts, encode
from deployments.engine.lease import wait_for_lease
from deployments.observability.logs import configure_logging
from deployments.observability.metrics import EngineMetrics

log = logging.getLogger("dray.embedder")

_POOLING = {"mean": "MEAN", "cls": "CLS", "last": "LAST_TOKEN"}
_POOLING_FLAGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
_BATCH_SIZE = 16


class EmbedderReplica:
    """Computes vectors of texts."""

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        """Leases cores, loads the model and runs a first inference. args: EngineArgs as JSON."""
        engine_args = EngineArgs.model_validate(args)
        configure_logging(engine_args.log_level)
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
        self._pipeline = await asyncio.to_thread(_load, model, len(self._lease.cpus))
        loaded = time.perf_counter()
        await asyncio.to_thread(self._pipeline.embed_documents, ["warm-up"])
        ready = Ready(loaded - started, time.perf_counter() - loaded, 0)
        self._metrics.started(self._lease.cpus, os.getpid(), ready)
        self._life = asyncio.create_task(liveness.show_life(Path(os.environ[liveness.FOLDER])))
        log.info("embedder ready", extra={"cpus": list(self._lease.cpus), "load_s": ready.load_s})

    async def embed(self, payload: bytes) -> bytes:
        """Vectors of length 1 as little-endian float32. payload: texts. Both are lists in MessagePack."""
        texts = decode_texts(payload)
        vectors: list[bytes] = []
        for start in range(0, len(texts), _BATCH_SIZE):
            # One batch at a time, so that other requests need not wait for all texts of a large one.
            async with self._lock:
                batch = await asyncio.to_thread(self._pipeline.embed_documents, texts[start : start + _BATCH_SIZE])
            vectors += [array("f", vector).tobytes() for vector in batch]
        return encode(vectors)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Empty: an embedder has no queue of tokens for the policy to count."""
        return {}

    def __del__(self) -> None:
        """Called by Serve when the replica stops."""
        self._metrics.gone()
        self._lease.release()


def _load(model: ServedModel, threads: int) -> Any:
    import openvino_genai

    pipeline = openvino_genai.TextEmbeddingPipeline
    config = pipeline.Config()
    config.normalize = True
    config.max_length = model.context_tokens
    pooling = model.settings.pooling if model.settings.pooling != "auto" else trained_pooling(model.folder)
    config.pooling_type = getattr(pipeline.PoolingType, _POOLING[pooling])
    return pipeline(str(model.folder), "CPU", config, INFERENCE_NUM_THREADS=threads)


def trained_pooling(folder: Path) -> str:
    """The pooling that the model was trained with, from the sentence-transformers config; mean without one."""
    file = folder / "1_Pooling" / "config.json"
    flags = read_json(file) if file.is_file() else {}
    return next((name for flag, name in _POOLING_FLAGS.items() if flags.get(flag)), "mean")
