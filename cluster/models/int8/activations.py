"""What a model's multiplications read: the greatest value of each channel, on a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.models.int8.graph import Array
from cluster.models.tokenizer_files import load_tokenizer

_WINDOW_TOKENS = 512
_PROPERTIES = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}


def windows(folder: Path, text: str, size: int = _WINDOW_TOKENS) -> list[list[int]]:
    """A text's token ids in windows of equal size. What is left over is dropped, unless it is all there is.

    folder: of the model whose tokenizer divides the text.
    """
    ids = load_tokenizer(folder).encode(text, add_special_tokens=False).ids
    return [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)] or [ids]


class WindowPeaks:
    """Runs a model on windows of text and keeps the greatest absolute value of each channel at some of its outputs."""

    def __init__(self, core: Any, xml: Path, places: Sequence[tuple[str, int]]) -> None:
        """core: of OpenVINO. places: the outputs, by the node's name and the output's index."""
        from openvino import opset13

        model = core.read_model(str(xml))
        nodes = {node.get_friendly_name(): node for node in model.get_ops()}
        axes = opset13.constant(np.array([0, 1], np.int64))
        self._first = len(model.outputs)
        sizes = [opset13.absolute(nodes[name].output(index)) for name, index in places]
        model.add_results([opset13.result(opset13.reduce_max(size, axes)) for size in sizes])
        # The ranges need no more precision than the processor's fastest way has.
        self._request = core.compile_model(model, "CPU", _PROPERTIES).create_infer_request()
        self._inputs = {port.any_name for port in model.inputs}
        self._places = len(places)
        self.peaks: list[Array] = []

    def run(self, window: Sequence[int]) -> None:
        """window: token ids, which stand for a whole text."""
        inputs = {
            "input_ids": np.array([window], np.int64),
            "attention_mask": np.ones((1, len(window)), np.int64),
            "position_ids": np.arange(len(window))[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.reset_state()
        self._request.infer({name: value for name, value in inputs.items() if name in self._inputs})
        seen = [np.array(self._request.get_output_tensor(self._first + place).data) for place in range(self._places)]
        self.peaks = [np.maximum(*pair) for pair in zip(self.peaks, seen, strict=True)] if self.peaks else seen
