"""An embedding model on OpenVINO: texts in, vectors out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.models.folder import ServedModel
from cluster.models.identity import read_json

_POOLING_FLAGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}


class TextEmbedder:
    """A compiled embedding model with its tokenizer. Calls release the GIL while the model computes."""

    def __init__(self, model: ServedModel, threads: int) -> None:
        """Raises RuntimeError or OSError for a model that cannot be read or compiled."""
        import openvino
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(model.context_tokens)
        self._tokenizer.enable_padding()
        settings = model.settings
        self._pooling = settings.pooling if settings.pooling != "auto" else trained_pooling(model.folder)
        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(model.folder / "openvino_model.xml"), "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self._inputs = {name for port in compiled.inputs for name in port.names}
        self._request = compiled.create_infer_request()

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of length 1, of shape [texts, size]. Texts beyond the model's context are cut to it."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
        inputs: dict[str, Any] = {
            "input_ids": np.array([encoding.ids for encoding in encodings], np.int64),
            "attention_mask": mask,
            "token_type_ids": np.array([encoding.type_ids for encoding in encodings], np.int64),
            "position_ids": np.maximum(mask.cumsum(1) - 1, 0),
        }
        outputs = self._request.infer({name: array for name, array in inputs.items() if name in self._inputs})
        vectors = self._pool(np.asarray(outputs[0], np.float32), mask)
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
    file = folder / "1_Pooling" / "config.json"
    flags = read_json(file) if file.is_file() else {}
    return next((name for flag, name in _POOLING_FLAGS.items() if flags.get(flag)), "mean")
