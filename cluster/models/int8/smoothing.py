"""SmoothQuant: the outliers of activations move into the weights, which changes no product but rounds better.

Xiao et al., "SmoothQuant" (arXiv 2211.10438). Each channel of an input is divided by a scale, and the weights that read
it are multiplied by the same. Here the division is folded into what produces the input, so it costs nothing: a norm's
weights, or the rows of another multiplication's weights.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cluster.models.int8.graph import Array, Projection, is_constant, key, values

ALPHA = 0.5
"""How much of the activations' range moves into the weights; 0.5 divides it evenly."""
_FLOOR = np.float32(0.01)
"""Of the median. A channel that the calibration text hardly uses may be used by others."""
_MOVES = ("Reshape", "Transpose", "Unsqueeze", "Broadcast", "Concat")
"""What brings values into attention: only their places change."""


class Scales:
    """What each projection's weights are multiplied by, for each input, and divided by, for each output."""

    def __init__(self) -> None:
        self._inputs: dict[str, Array] = {}
        self._outputs: dict[str, Array] = {}

    def multiply_inputs(self, projection: Projection, scale: Array) -> None:
        self._inputs[projection.name] = scale

    def divide_outputs(self, projection: Projection, scale: Array) -> None:
        self._outputs[projection.name] = scale

    def weights(self, projection: Projection) -> Array:
        """The projection's weights with these scales."""
        weights = projection.weights()
        if (scale := self._inputs.get(projection.name)) is not None:
            weights = weights * scale
        if (scale := self._outputs.get(projection.name)) is not None:
            weights = weights / scale[:, None]
        return weights


class Source(Protocol):
    """What produces an input, and can produce it divided by a scale."""

    def shared(self, channels: Array) -> Array:
        """The greatest of those channels that can only have one scale, for each of them."""

    def divide(self, scale: Array, scales: Scales) -> None:
        """Folds the division in."""


@dataclass(frozen=True, slots=True)
class Smoothable:
    """An input, the projections that read it, and what produces it."""

    readers: tuple[Projection, ...]
    source: Source

    @property
    def activations(self) -> Any:
        return self.readers[0].activations

    def smooth(self, peaks: Array, scales: Scales) -> None:
        """Chooses the scale of each channel, and applies it on both sides.

        peaks: the greatest absolute value of each channel.
        """
        widest = np.maximum.reduce([np.abs(scales.weights(reader)).max(axis=0) for reader in self.readers])
        peaks, widest = self.source.shared(_floored(peaks)), self.source.shared(_floored(widest))
        scale = (peaks**ALPHA / widest ** (1 - ALPHA)).astype(np.float32)
        for reader in self.readers:
            scales.multiply_inputs(reader, scale)
        self.source.divide(scale, scales)


def _floored(channels: Array) -> Array:
    floor = _FLOOR * np.median(channels)
    return np.maximum(channels, floor if floor > 0 else np.float32(1))


def smoothables(projections: Iterable[Projection]) -> list[Smoothable]:
    """The inputs that can be smoothed; those first whose scales change the rows of other weights."""
    readers: dict[tuple[str, int], list[Projection]] = {}
    by_name = {projection.name: projection for projection in projections}
    for projection in by_name.values():
        readers.setdefault(key(projection.activations), []).append(projection)
    found = []
    for group in readers.values():
        # A token's row of the table would be scaled too.
        if not any(reader.is_embedding for reader in group) and (source := _source(group, by_name)):
            found.append(Smoothable(tuple(group), source))
    return sorted(found, key=lambda each: isinstance(each.source, _Norm))


def _source(readers: list[Projection], projections: Mapping[str, Projection]) -> Source | None:
    output = readers[0].activations
    names = {reader.name for reader in readers}
    for target in output.get_target_inputs():
        node = target.get_node()
        if node.get_type_name() != "ShapeOf" and node.get_friendly_name() not in names:
            return None
    return _norm(output) or _gated(output, projections) or _attention(output, projections)


@dataclass(frozen=True, slots=True)
class _Norm:
    """A norm: the multiplication by its weights, or, where they are all 1 and left out, by each token's size."""

    output: Any
    weights_index: int | None

    def shared(self, channels: Array) -> Array:
        return channels

    def divide(self, scale: Array, scales: Scales) -> None:
        from openvino import opset13

        node = self.output.get_node()
        if self.weights_index is not None:
            weights = values(node.input_value(self.weights_index)) / scale
            node.input(self.weights_index).replace_source_output(opset13.constant(weights).output(0))
            return
        readers = [each for each in self.output.get_target_inputs() if each.get_node().get_type_name() != "ShapeOf"]
        # OpenVINO makes one operation of it and the rest of the norm.
        divided = opset13.multiply(self.output, opset13.constant((1 / scale)[None, None]))
        for reader in readers:
            reader.replace_source_output(divided.output(0))


def _norm(output: Any) -> Source | None:
    node = output.get_node()
    if node.get_type_name() != "Multiply":
        return None
    for index, each in enumerate(node.input_values()):
        size = each.get_partial_shape()[-1] if each.get_partial_shape().rank.get_length() else None
        if is_constant(each):
            return _Norm(output, index) if size == output.get_partial_shape()[-1] else None
    sizes = [each.get_partial_shape()[-1] for each in node.input_values()]
    return _Norm(output, None) if 1 in sizes else None


@dataclass(frozen=True, slots=True)
class _Part:
    """The outputs of a projection, or `size` of them from `first` on.

    bias: the input that adds the projection's bias; None without one.
    """

    projection: Projection
    bias: Any
    first: int
    size: int


@dataclass(frozen=True, slots=True)
class _Rows:
    """Another projection's rows, and its bias.

    repeats: how many times in a row each head of `head_size` outputs is read; a multiplication of elements reads all
    once.
    """

    part: _Part
    head_size: int
    repeats: int

    def shared(self, channels: Array) -> Array:
        heads = channels.reshape(-1, self.repeats, self.head_size).max(axis=1, keepdims=True)
        return np.repeat(heads, self.repeats, axis=1).reshape(-1)

    def divide(self, scale: Array, scales: Scales) -> None:
        from openvino import opset13

        rows = np.ones(self.part.projection.outputs, np.float32)
        rows[self.part.first :][: self.part.size] = scale.reshape(-1, self.repeats, self.head_size)[:, 0].reshape(-1)
        scales.divide_outputs(self.part.projection, rows)
        if self.part.bias is not None:
            bias = values(self.part.bias.get_source_output())
            self.part.bias.replace_source_output(opset13.constant(bias / rows).output(0))


def _gated(output: Any, projections: Mapping[str, Projection]) -> Source | None:
    """The factor of a gated MLP that passes through no activation: up_proj, or its half of a matrix with gate_proj."""
    if output.get_node().get_type_name() != "Multiply":
        return None
    for factor in output.get_node().input_values():
        if part := _part(factor, projections):
            return _Rows(part, head_size=part.size, repeats=1)
    return None


def _attention(output: Any, projections: Mapping[str, Projection]) -> Source | None:
    """v_proj: attention averages its rows. Several heads may read one of its heads."""
    node = output.get_node()
    for expected in ("Reshape", "Transpose"):
        if node.get_type_name() != expected:
            return None
        node = node.input_value(0).get_node()
    if node.get_type_name() != "ScaledDotProductAttention":
        return None
    heads, head_size = (node.output(0).get_partial_shape()[index] for index in (1, 3))
    part = _moved(node.input_value(2), projections)
    if part is None or heads.is_dynamic or head_size.is_dynamic:
        return None
    repeats, rest = divmod(heads.get_length() * head_size.get_length(), part.size)
    return None if rest else _Rows(part, head_size=head_size.get_length(), repeats=repeats)


def _moved(output: Any, projections: Mapping[str, Projection]) -> _Part | None:
    """The projection whose outputs arrive here in other places, repeated, or behind those of earlier tokens."""
    if part := _part(output, projections):
        return part
    node = output.get_node()
    if node.get_type_name() not in _MOVES:
        return None
    inputs = node.input_values() if node.get_type_name() == "Concat" else [node.input_value(0)]
    return next(filter(None, (_moved(each, projections) for each in inputs)), None)


def _part(output: Any, projections: Mapping[str, Projection]) -> _Part | None:
    """The projection that this output comes from directly."""
    shape = output.get_partial_shape()
    if shape.rank.is_dynamic or shape[-1].is_dynamic or _readers(output) != 1:
        return None
    whole, first = _unsplit(output)
    product, bias = _unbiased(whole)
    projection = projections.get(product.get_node().get_friendly_name())
    if projection is None or projection.is_embedding or _readers(product) != 1 or _readers(whole) != 1:
        return None
    return _Part(projection, bias, first, shape[-1].get_length())


def _unsplit(output: Any) -> tuple[Any, int]:
    """What this output is a part of, and where the part begins; itself if it is no part."""
    node = output.get_node()
    if node.get_type_name() not in ("Split", "VariadicSplit"):
        return output, 0
    before = [part.get_partial_shape()[-1] for part in node.outputs()[: output.get_index()]]
    axis = int(values(node.input_value(1)).reshape(-1)[0])
    is_last = axis in (-1, output.get_partial_shape().rank.get_length() - 1)
    if not is_last or any(size.is_dynamic for size in before):
        return output, 0
    return node.input_value(0), sum(size.get_length() for size in before)


def _unbiased(output: Any) -> tuple[Any, Any]:
    """What this output is before a constant is added, and the input that adds it."""
    if output.get_node().get_type_name() != "Add":
        return output, None
    inputs = output.get_node().inputs()
    constant = [is_constant(each.get_source_output()) for each in inputs]
    if constant.count(True) != 1:
        return output, None
    return inputs[constant.index(False)].get_source_output(), inputs[constant.index(True)]


def _readers(output: Any) -> int:
    return sum(target.get_node().get_type_name() != "ShapeOf" for target in output.get_target_inputs())
