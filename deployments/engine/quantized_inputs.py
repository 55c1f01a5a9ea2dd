"""Rounds what attention's projections read to INT8, in the graph, so that the processor multiplies it in INT8.

By itself OpenVINO does so only in MLPs that it fuses (2026.4). Behind a FakeQuantize it takes a kernel of AMX' INT8 for
symmetric weights.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from cluster.models.int8.graph import Projection, key, lookups, projections, stored

_ATTENTION = "ScaledDotProductAttention"
_MOVES = ("Reshape", "Transpose")
"""What attention's result passes through: only the places of its values change."""
_LARGEST = 127.0
_LEAST_PEAK = 1e-6
"""So that a token of zeros is not divided by zero."""


def quantize_inputs(model: Any, roles: Collection[Literal["qkv", "o"]]) -> None:
    """Changes a model that has no paged attention yet: each token's input is divided by its scale and rounded.

    roles: qkv are the projections that attention reads, o those that read its result. Only those change whose weights
    are symmetric INT8 with a scale for each row.
    """
    found = [each for each in projections(model) if _is_symmetric(each)]
    chosen = [*(_before(model, found) if "qkv" in roles else ()), *(_after(found) if "o" in roles else ())]
    rounded: dict[tuple[str, int], tuple[Any, Any]] = {}
    for projection in chosen:
        place = key(projection.activations)
        if place not in rounded:  # q, k and v read the same
            rounded[place] = _rounded(projection.activations)
        _scale(projection.node, *rounded[place])
    if chosen:
        _look_up_numbers(model, found)
    model.validate_nodes_and_infer_types()


def _is_symmetric(projection: Projection) -> bool:
    """Whether the weights are INT8 times a scale for each row, as `cluster.models.int8` writes them."""
    scaled = projection.node.input_value(1).get_node()
    if scaled.get_type_name() != "Multiply":
        return False
    converted, scales = (value.get_node() for value in scaled.input_values())
    if converted.get_type_name() != "Convert" or scales.get_type_name() != "Constant":
        return False
    numbers = converted.input_value(0)
    return (
        numbers.get_node().get_type_name() == "Constant"
        and numbers.get_element_type().to_string() == "i8"
        and list(scales.get_output_shape(0)) == [projection.outputs, 1]
    )


def _after(found: Sequence[Projection]) -> Iterator[Projection]:
    """The projections whose input is attention's result."""
    for projection in found:
        node = projection.activations.get_node()
        while node.get_type_name() in _MOVES:
            node = node.input_value(0).get_node()
        if node.get_type_name() == _ATTENTION:
            yield projection


def _before(model: Any, found: Sequence[Projection]) -> Iterator[Projection]:
    """The projections that attention's queries, keys and values come from, whatever is in between."""
    by_name = {projection.name: projection for projection in found}
    open_ = [
        value for node in model.get_ops() if node.get_type_name() == _ATTENTION for value in node.input_values()[:3]
    ]
    seen: set[str] = set()
    while open_:
        node = open_.pop().get_node()
        name = node.get_friendly_name()
        if name in seen:
            continue
        seen.add(name)
        if name in by_name:
            yield by_name[name]
        # Shapes follow from anything, also from earlier layers.
        elif node.get_type_name() not in ("ShapeOf", "MatMul"):
            open_ += node.input_values()


def _look_up_numbers(model: Any, found: Sequence[Projection]) -> None:
    """Looks tokens up in the INT8 numbers of a table, where the output head multiplies by the same weights.

    Beside a FakeQuantize OpenVINO restores shared weights to bf16 once and for all (2026.4), which doubles their
    memory.
    """
    from openvino import opset13

    shared = {key(stored(each.node.input_value(1))): each.node.input_value(1) for each in found if each.is_embedding}
    for port in lookups(model):
        if weights := shared.get(key(stored(port.get_source_output()))):
            numbers, scales = (value.get_node() for value in weights.get_node().input_values())
            ids, axis = port.get_node().input_values()[1:]
            rows = opset13.convert(opset13.gather(numbers.input_value(0), ids, axis), np.float32)
            row_scales = opset13.gather(scales, ids, axis)
            port.get_node().output(0).replace(opset13.multiply(rows, row_scales).output(0))


def _rounded(values: Any) -> tuple[Any, Any]:
    """New outputs: whole numbers of at most 127, and what each token's are multiplied by."""
    from openvino import opset13

    last = opset13.constant(np.array([-1], np.int64))
    peak = opset13.maximum(opset13.reduce_max(opset13.absolute(values), last, keep_dims=True), _number(_LEAST_PEAK))
    stretched = opset13.multiply(values, opset13.divide(_number(_LARGEST), peak))
    # The range of INT8, for which OpenVINO takes its kernels.
    low, high = _number(-128), _number(127)
    whole = opset13.fake_quantize(stretched, low, high, low, high, levels=256)
    return whole.output(0), opset13.multiply(peak, _number(1 / _LARGEST)).output(0)


def _scale(node: Any, whole: Any, scale: Any) -> None:
    """Gives a multiplication another input, and its readers the product in the old size."""
    from openvino import opset13

    readers = node.output(0).get_target_inputs()
    node.input(0).replace_source_output(whole)
    product = opset13.multiply(node.output(0), scale).output(0)
    for reader in readers:
        reader.replace_source_output(product)


def _number(value: float) -> Any:
    from openvino import opset13

    return opset13.constant(np.float32(value))
