"""Converts a model's weights to symmetric INT8, and prints its progress as lines of JSON.

`convert` starts it in a process of its own, which takes OpenVINO's threads and gigabytes with it.
"""

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cluster.models.int8.activations import WindowPeaks, windows
from cluster.models.int8.graph import (
    Projection,
    UnreadableWeights,
    key,
    lookups,
    projections,
    stored,
    symmetric,
    values,
)
from cluster.models.int8.messages import CALIBRATION_TEXT, Converted, ConvertRequest, Event, Refused, Step
from cluster.models.int8.smoothing import Scales, smoothables
from cluster.units import format_bytes

_MODEL = "openvino_model"
_TOKENIZER = "tokenizer.json"
_SPARE_BYTES = 256 << 20


class ConversionError(Exception):
    """The model cannot be converted; the message says why."""


def convert(request: ConvertRequest) -> Iterator[Event]:
    """Writes the converted graph and its weights; yields every step, and what was converted at the end.

    Raises ConversionError and UnreadableWeights.
    """
    import openvino

    source, target = Path(request.source), Path(request.target)
    if not (source / _TOKENIZER).is_file():
        raise ConversionError(f"it has no {_TOKENIZER}")
    core = openvino.Core()
    model = core.read_model(str(source / f"{_MODEL}.xml"))
    found = projections(model)
    _check(model, found)
    _check_disk(found, source, target)
    smoothed = smoothables(found)
    text = windows(source, CALIBRATION_TEXT.read_text())
    total, done = len(text) + len(smoothed) + len(found), 0

    yield Step("running the model on a text", done, total)
    observed = WindowPeaks(core, source / f"{_MODEL}.xml", [key(each.activations) for each in smoothed])
    for window in text:
        observed.run(window)
        yield Step("running the model on a text", done := done + 1, total)
    peaks = observed.peaks
    del observed  # its copy of the weights
    scales = Scales()
    for each, channels in zip(smoothed, peaks, strict=True):
        each.smooth(channels, scales)
        yield Step("smoothing", done := done + 1, total)
    for projection in found:
        _replace(model, projection, scales)
        yield Step("rounding weights", done := done + 1, total)
    _compress_tables(model)
    model.validate_nodes_and_infer_types()
    yield Step("writing", done, total)
    openvino.save_model(model, str(target / f"{_MODEL}.xml"), compress_to_fp16=False)
    yield Converted(len(found), len(smoothed), sum(map(len, text)))


def _check(model: Any, found: Sequence[Projection]) -> None:
    inputs = {port.any_name for port in model.inputs}
    if "input_ids" not in inputs or "logits" not in {name for port in model.outputs for name in port.get_names()}:
        raise ConversionError("it does not generate text")
    if not found:
        raise ConversionError("it holds no multiplications by weights of a form that is known here")


def _check_disk(found: Sequence[Projection], source: Path, target: Path) -> None:
    numbers = sum(projection.size for projection in found)
    # The rest, such as the table of tokens, is written as it is.
    needed = numbers + (source / f"{_MODEL}.bin").stat().st_size // 4 + _SPARE_BYTES
    free = shutil.disk_usage(target).free
    if needed > free:
        raise ConversionError(
            f"the converted weights need {format_bytes(needed)}, and {target.parent} has {format_bytes(free)} free; "
            "free some space or choose another folder"
        )


def _replace(model: Any, projection: Projection, scales: Scales) -> None:
    new = symmetric(scales.weights(projection))
    if projection.is_embedding:
        shared = key(stored(projection.node.input_value(1)))
        for port in lookups(model):
            if key(stored(port.get_source_output())) == shared:
                port.replace_source_output(new)
    projection.node.input(1).replace_source_output(new)


def _compress_tables(model: Any) -> None:
    """Also the table of tokens, where it is stored as floating-point numbers."""
    for port in lookups(model):
        if stored(port.get_source_output()).get_node().get_type_name() == "Constant":
            port.replace_source_output(symmetric(values(port.get_source_output())))


def main() -> None:
    """argv[1]: a ConvertRequest as JSON."""
    request = msgspec.json.decode(sys.argv[1], type=ConvertRequest)
    try:
        for event in convert(request):
            _print(event)
    except (ConversionError, UnreadableWeights, OSError, RuntimeError) as error:  # RuntimeError: OpenVINO's
        lines = str(error).strip().splitlines()
        _print(Refused(lines[-1] if lines else repr(error)))


def _print(event: Event) -> None:
    print(msgspec.json.encode(event).decode(), flush=True)


if __name__ == "__main__":
    main()
