"""An encoder on OpenVINO: an embedding model gives a vector for a text, a reranker a logit for a pair of texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.models.folder import ServedModel
from cluster.models.identity import read_json
from cluster.models.relevance import answer_tokens
from cluster.models.tasks import POOLING_FILE, POOLING_FLAGS, check_output
from cluster.models.tokenizer_files import load_tokenizer
from deployments.common.messages import EncoderInput
from deployments.engine.encoder.answer_logit import LAST, keep_answer_logit

_KV_CACHE_ORDER = "beam_idx"
"""An input of language models that are exported with a KV cache: which text of the batch before each one continues."""


class EncoderModel:
    """A compiled encoder. Calls release the GIL while the model computes."""

    def __init__(self, model: ServedModel, threads: int, properties: Mapping[str, Any] = MappingProxyType({})) -> None:
        """properties: of OpenVINO's CPU plugin.

        Raises RuntimeError, OSError or ValueError for a model that cannot be compiled, or has another task.
        """
        import openvino

        settings = model.settings
        self._pooling = settings.pooling if settings.pooling != "auto" else trained_pooling(model.folder)
        self._pad = int(read_json(model.folder / "config.json").get("pad_token_id") or 0)
        core = openvino.Core()
        graph = core.read_model(model.folder / "openvino_model.xml")
        if model.ranks_by_answer:
            check_output(model.name, "generate", graph.outputs[0].partial_shape)
            keep_answer_logit(graph, *answer_tokens(load_tokenizer(model.folder)))
        compiled = core.compile_model(graph, "CPU", {"INFERENCE_NUM_THREADS": threads, **properties})
        self._inputs = {name for port in compiled.inputs for name in port.names}
        self._ranks = settings.task == "rerank"
        check_output(model.name, settings.task, compiled.outputs[0].partial_shape)
        self._request = compiled.create_infer_request()

    def run(self, batch: Sequence[EncoderInput]) -> npt.NDArray[np.float32]:
        """Vectors of length 1, of shape [inputs, size]; of a reranker its logits, of shape [inputs, 1]."""
        shape = len(batch), max(len(text.ids) for text in batch)
        ids, types = np.full(shape, self._pad, np.int64), np.zeros(shape, np.int64)
        mask = np.zeros(shape, np.int64)
        for row, text in enumerate(batch):
            ids[row, : len(text.ids)] = text.ids
            mask[row, : len(text.ids)] = 1
            if text.second:
                types[row, text.second : len(text.ids)] = 1
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": types,
            "position_ids": np.maximum(mask.cumsum(1) - 1, 0),
            LAST: mask.sum(1, keepdims=True) - 1,
            _KV_CACHE_ORDER: np.arange(len(batch), dtype=np.int32),
        }
        if _KV_CACHE_ORDER in self._inputs:
            self._request.reset_state()  # a language model would go on with the batch before
        outputs = self._request.infer({name: array for name, array in inputs.items() if name in self._inputs})
        result = np.asarray(outputs[0], np.float32)
        if self._ranks:
            return result
        vectors = self._pool(result, mask)
        normalized: npt.NDArray[np.float32] = vectors / np.maximum(
            np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12
        )
        return normalized

    def _pool(self, hidden: npt.NDArray[np.float32], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """One vector for each text. hidden: the last layer's states, of shape [texts, tokens, size]."""
        if self._pooling == "cls":
            return hidden[:, 0]
        if self._pooling == "last":
            last = mask.shape[1] - 1 - mask[:, ::-1].argmax(1)
            vectors: npt.NDArray[np.float32] = hidden[np.arange(len(hidden)), last]
            return vectors
        weights = mask[:, :, None].astype(np.float32)
        means: npt.NDArray[np.float32] = (hidden * weights).sum(1) / np.maximum(weights.sum(1), 1)
        return means


def trained_pooling(folder: Path) -> str:
    """The pooling that the model was trained with, from the sentence-transformers config; mean without one."""
    file = folder / POOLING_FILE
    flags = read_json(file) if file.is_file() else {}
    return next((name for flag, name in POOLING_FLAGS.items() if flags.get(flag)), "mean")
