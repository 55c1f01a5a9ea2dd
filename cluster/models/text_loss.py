"""What a model loses on a text by how its weights are stored and multiplied, against a reference in full precision."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.models.identity import GRAPH_FILE, StoredWeights, stored_weights
from cluster.models.tokenizer_files import load_tokenizer

HELD_OUT_TEXT = Path(__file__).with_name("heldout.txt")
"""English and Chinese prose, questions, thinking, code and tables; not what conversions are smoothed on."""
_WINDOW_TOKENS = 512
_WHOLE_ROW = str(2**64 - 1)
"""As text: OpenVINO takes whole numbers as C longs, which end at 2**63 - 1."""
ARITHMETIC: Mapping[str, Mapping[str, str]] = {
    "f32": {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "KV_CACHE_PRECISION": "f32",
    },
    "default": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"},
    "int8 in groups": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"},
    "int8 by token": {"INFERENCE_PRECISION_HINT": "bf16", "DYNAMIC_QUANTIZATION_GROUP_SIZE": _WHOLE_ROW},
}
"""Ways to multiply, and what OpenVINO's CPU plugin is asked for. `f32` loses nothing; `default` is OpenVINO's
choice. The others quantise what is multiplied by the weights: in groups of 128 numbers, or, in MLPs, each
token at once."""


class TextTooShort(ValueError):
    """A text of fewer than two tokens."""


@dataclass(frozen=True, slots=True)
class TextLoss:
    """What a model's arithmetic loses on a text.

    perplexity: exp of the mean negative log-likelihood per token. divergence: mean Kullback-Leibler divergence from the
    reference's distributions of the next token, in nats. same_top: share of tokens after which both find the same one
    the most likely.
    """

    model: str
    arithmetic: str
    perplexity: float
    divergence: float
    same_top: float


class TextModel:
    """A model that reads texts from their beginning."""

    def __init__(self, folder: Path, arithmetic: str = "default") -> None:
        import openvino

        self.vocabulary = int(json.loads((folder / "config.json").read_text())["vocab_size"])
        compiled = openvino.Core().compile_model(str(folder / GRAPH_FILE), "CPU", dict(ARITHMETIC[arithmetic]))
        self._request = compiled.create_infer_request()
        self._inputs = {port.any_name for port in compiled.inputs}

    def log_probabilities(self, ids: Sequence[int]) -> npt.NDArray[np.float64]:
        """Of each token of the vocabulary after each of these tokens: [tokens, vocabulary]."""
        inputs: dict[str, Any] = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids))[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.reset_state()
        self._request.infer({name: value for name, value in inputs.items() if name in self._inputs})
        logits = self._request.get_output_tensor(0).data[0].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return np.asarray(logits)


def windows(folder: Path, text: str) -> Iterator[tuple[list[int], list[int]]]:
    """A text's tokens and the tokens that follow each of them, in windows without overlap. Raises TextTooShort."""
    ids = load_tokenizer(folder).encode(text, add_special_tokens=False).ids
    if len(ids) < 2:
        raise TextTooShort("the text has fewer than two tokens")
    for start in range(0, len(ids) - 1, _WINDOW_TOKENS):
        window = ids[start : start + _WINDOW_TOKENS + 1]
        yield window[:-1], window[1:]


def ways_to_multiply(folder: Path) -> list[str]:
    """Those of ARITHMETIC that this processor has for the folder's weights."""
    has_amx = "amx_int8" in Path("/proc/cpuinfo").read_text().split()
    # With one thread OpenVINO ends with SIGFPE (2026.4).
    by_token = has_amx and len(os.sched_getaffinity(0)) > 1
    if by_token and stored_weights(folder) == StoredWeights.INT8_SYMMETRIC_SMOOTHED:
        return list(ARITHMETIC)
    return list(ARITHMETIC)[:-1]


def text_losses(reference: Path, folders: Sequence[Path], text: str) -> Iterator[TextLoss]:
    """Measures each way to multiply of each folder against the reference in f32.

    All have the reference's tokens. Raises TextTooShort, and ValueError for a model with another vocabulary.
    """
    exact = TextModel(reference, "f32")
    for folder in folders:
        for arithmetic in ways_to_multiply(folder):
            yield _loss(exact, folder, arithmetic, list(windows(reference, text)))


def _loss(exact: TextModel, folder: Path, arithmetic: str, text: Sequence[tuple[list[int], list[int]]]) -> TextLoss:
    model = TextModel(folder, arithmetic)
    if model.vocabulary != exact.vocabulary:
        raise ValueError(f"{folder} has {model.vocabulary} tokens, and the reference {exact.vocabulary}")
    loss = divergence = same = 0.0
    count = 0
    for ids, following in text:
        expected, found = exact.log_probabilities(ids), model.log_probabilities(ids)
        loss -= float(found[np.arange(len(ids)), following].sum())
        divergence += float((np.exp(expected) * (expected - found)).sum())
        same += float((expected.argmax(axis=1) == found.argmax(axis=1)).sum())
        count += len(ids)
    return TextLoss(str(folder), arithmetic, math.exp(loss / count), divergence / count, same / count)
