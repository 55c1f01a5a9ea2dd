"""The weights in a graph that OpenVINO has read: what multiplies by them, their values, and storing them anew."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

_MAX_DEPTH = 8
"""Operations between a multiplication and its stored weights; group-wise INT4 has five."""
_MIN_SIZE = 32
"""Smaller matrices are no weights: rotary embeddings multiply by one."""
_LARGEST = 127


class UnreadableWeights(ValueError):
    """Weights that are computed in a way that is not known here."""


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A multiplication of activations by weights [outputs, inputs].

    node: of OpenVINO, as everything here that is `Any`. is_embedding: whether tokens are looked up in the same weights.
    """

    node: Any
    is_embedding: bool

    @property
    def name(self) -> str:
        return str(self.node.get_friendly_name())

    @property
    def activations(self) -> Any:
        """The output that it multiplies by its weights."""
        return self.node.input_value(0)

    @property
    def size(self) -> int:
        """How many weights it has."""
        return int(np.prod(self.node.input_value(1).get_shape()))

    @property
    def outputs(self) -> int:
        return int(self.node.input_value(1).get_shape()[0])

    def weights(self) -> Array:
        return values(self.node.input_value(1))


def projections(model: Any) -> list[Projection]:
    """The model's multiplications by weights, in the order of the computation."""
    nodes = [node for node in model.get_ordered_ops() if _is_projection(node)]
    embeddings = {key(stored(port.get_source_output())) for port in lookups(model)}
    return [Projection(node, key(stored(node.input_value(1))) in embeddings) for node in nodes]


def lookups(model: Any) -> list[Any]:
    """The inputs that read a table of tokens."""
    gathers = [node for node in model.get_ordered_ops() if node.get_type_name() == "Gather"]
    return [node.input(0) for node in gathers if _is_table(node.input_value(0))]


def _is_table(output: Any) -> bool:
    if not is_constant(output) or not output.get_element_type().is_real():
        return False
    return len(output.get_shape()) == 2 and min(output.get_shape()) >= _MIN_SIZE


def _is_projection(node: Any) -> bool:
    if node.get_type_name() != "MatMul" or not is_constant(weights := node.input_value(1)):
        return False
    shape, attributes = weights.get_shape(), node.get_attributes()
    is_plain = attributes["transpose_b"] and not attributes["transpose_a"]
    return bool(is_plain and len(shape) == 2 and min(shape) >= _MIN_SIZE)


def is_constant(output: Any, depth: int = _MAX_DEPTH) -> bool:
    """Whether a value follows from constants alone, by a few operations."""
    node = output.get_node()
    if node.get_type_name() == "Constant":
        return True
    inputs = node.input_values()
    return bool(inputs) and depth > 0 and all(is_constant(each, depth - 1) for each in inputs)


def stored(output: Any) -> Any:
    """Where weights come from before conversions of their type; the same for all their readers."""
    while (node := output.get_node()).get_type_name() == "Convert":
        output = node.input_value(0)
    return output


def key(output: Any) -> tuple[str, int]:
    """Tells outputs apart, as two objects may stand for the same one."""
    return output.get_node().get_friendly_name(), output.get_index()


def values(output: Any) -> Array:
    """A constant value as numbers. Raises UnreadableWeights."""
    node = output.get_node()
    inputs = node.input_values()
    match node.get_type_name():
        case "Constant":
            return np.asarray(node.get_data(dtype=np.float32))
        case "Convert":
            return values(inputs[0])
        case "Multiply":
            return values(inputs[0]) * values(inputs[1])
        case "Subtract":
            return values(inputs[0]) - values(inputs[1])
        case "Reshape":
            return values(inputs[0]).reshape(output.get_shape())
        case other:
            raise UnreadableWeights(f"its weights pass through the operation {other}, which cannot be converted")


def symmetric(weights: Array) -> Any:
    """The output of new nodes that hold weights as INT8 with one scale for each row and no zero point.

    This form, with a scale of 32 bits, is the one that OpenVINO's CPU plugin multiplies in INT8 (2026.4,
    `mlp_fusion.cpp`).
    """
    from openvino import opset13

    if not np.isfinite(weights).all():
        raise UnreadableWeights("some of its weights are no finite numbers")
    scales = np.maximum(np.abs(weights).max(axis=1, keepdims=True), np.float32(1e-12)) / np.float32(_LARGEST)
    rounded = np.rint(weights / scales).astype(np.int8)
    converted = opset13.convert(opset13.constant(rounded), np.float32)
    return opset13.multiply(converted, opset13.constant(scales.astype(np.float32))).output(0)
