"""The embedding replica: one Serve replica on one lease of whole cores, with an embedding model of its own.

Unlike a generation's steps, an embedding call lets go of the GIL: no process of its own is needed.
"""

import asyncio
import json
import logging
import os
import time
from array import array
from pathlib import Path
from typing import Any

from ray import serve

from cluster.cores import pin_process
from cluster.models.folder import ServedModel, open_model
from cluster.node import Node
from cluster.serve_config import EngineArgs
from deployments.common.messages import Ready, decode_texts, encode
from deployments.engine.lease import wait_for_lease
from deployments.observability.metrics import EngineMetrics, configure_logging

log = logging.getLogger("dray.embedder")

_POOLING = {"mean": "MEAN", "cls": "CLS", "last": "LAST_TOKEN"}
_POOLING_FLAGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
_AT_A_TIME = 16


class EmbedderReplica:
    """Makes vectors of texts."""

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        """Ready when this returns: cores leased, model loaded, first inference done. args: EngineArgs as JSON."""
        given = EngineArgs.model_validate(args)
        configure_logging(given.log_level)
        node = Node.here()
        model = open_model(given.model, node.models_dir)
        name = serve.get_replica_context().replica_id.unique_id
        self._metrics = EngineMetrics(model.name, name)
        owner = f"{model.name}/{name}"
        self._lease = await wait_for_lease(given.cores, node.core_lock_dir, owner, self._metrics.lease_missed.inc)
        # Before OpenVINO loads, which sizes itself by it.
        pin_process(self._lease.cpus)
        self._turn = asyncio.Lock()
        began = time.perf_counter()
        self._pipeline = await asyncio.to_thread(_load, model, len(self._lease.cpus))
        loaded = time.perf_counter()
        await asyncio.to_thread(self._pipeline.embed_documents, ["warm-up"])
        ready = Ready(loaded - began, time.perf_counter() - loaded, 0)
        self._metrics.started(self._lease.cpus, os.getpid(), ready)
        log.info("embedder ready", extra={"cpus": list(self._lease.cpus), "load_s": ready.load_s})

    async def embed(self, payload: bytes) -> bytes:
        """Vectors of length 1 as little-endian float32, for texts; both lists as MessagePack."""
        texts = decode_texts(payload)
        vectors: list[bytes] = []
        for start in range(0, len(texts), _AT_A_TIME):
            # In turns, so that a request with many texts does not make the others wait for all of them.
            async with self._turn:
                made = await asyncio.to_thread(self._pipeline.embed_documents, texts[start : start + _AT_A_TIME])
            vectors += [array("f", one).tobytes() for one in made]
        return encode(vectors)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """An embedder has no tokens waiting that a policy could count."""
        return {}

    def __del__(self) -> None:
        """Serve calls this when the replica stops."""
        self._metrics.gone()
        self._lease.release()


def _load(model: ServedModel, threads: int) -> Any:
    import openvino_genai

    pipeline = openvino_genai.TextEmbeddingPipeline
    config = pipeline.Config()
    config.normalize = True
    config.max_length = model.context_tokens
    chosen = model.settings.pooling if model.settings.pooling != "auto" else _trained_pooling(model.folder)
    config.pooling_type = getattr(pipeline.PoolingType, _POOLING[chosen])
    return pipeline(str(model.folder), "CPU", config, INFERENCE_NUM_THREADS=threads)


def _trained_pooling(folder: Path) -> str:
    """The pooling that the model was trained with, as sentence-transformers notes it; mean where it is not noted."""
    file = folder / "1_Pooling" / "config.json"
    noted = json.loads(file.read_text()) if file.is_file() else {}
    return next((name for flag, name in _POOLING_FLAGS.items() if noted.get(flag)), "mean")
