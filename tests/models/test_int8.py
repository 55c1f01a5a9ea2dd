"""`dray models convert`: INT8 that processors compute in, from the bundled model and from variants of it."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import opset13

from cluster.models.compare import perplexity
from cluster.models.folder import BUNDLED_FOLDER, open_model
from cluster.models.identity import Conversion, StoredWeights, fingerprint, graph_digest
from cluster.models.int8 import graph
from cluster.models.int8.activations import windows
from cluster.models.int8.convert import ConversionError, convert_folder, work_name
from cluster.models.int8.messages import Step
from cluster.models.int8.smoothing import Scales, smoothables
from cluster.models.text_loss import ARITHMETIC
from cluster.settings import ModelSettings
from demo.problems import make

XML, BIN = "openvino_model.xml", "openvino_model.bin"
LAYERS = 6
KNOWN = "\n".join(make(Random(n), "cage", "zh").thinking for n in range(20))
"""Text that the bundled model was trained on."""


def copy(folder: Path) -> Path:
    """The bundled model, as a folder of a user's."""
    shutil.copytree(BUNDLED_FOLDER, folder)
    return folder


def rewrite(folder: Path, change: Callable[[Any], None]) -> Path:
    """A copy of the bundled model with a changed graph."""
    copy(folder)
    model = openvino.Core().read_model(str(BUNDLED_FOLDER / XML))
    change(model)
    model.validate_nodes_and_infer_types()
    openvino.save_model(model, str(folder / XML), compress_to_fp16=False)
    return folder


def convert(source: Path, target: Path) -> Conversion:
    return convert_folder(source, target, lambda step: None)


def weights_served(folder: Path) -> StoredWeights:
    return open_model(ModelSettings(source=str(folder)), folder).weights


def logits(model: Any) -> Any:
    ids = windows(BUNDLED_FOLDER, KNOWN, 64)[0]
    request = openvino.Core().compile_model(model, "CPU", dict(ARITHMETIC["f32"])).create_infer_request()
    inputs = {
        "input_ids": np.array([ids]),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": np.arange(len(ids))[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    request.infer(inputs)
    return np.array(request.get_tensor("logits").data)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "model"
    steps: list[Step] = []
    done = convert_folder(BUNDLED_FOLDER, target, steps.append)
    assert done.smoothed == 4 * LAYERS and done.matrices == 7 * LAYERS + 1
    assert [step.done for step in steps] == sorted(step.done for step in steps) and steps[-1].done == steps[-1].total
    return target


def test_all_weights_are_symmetric_and_nothing_is_added(converted: Path) -> None:
    before, after = (openvino.Core().read_model(str(folder / XML)) for folder in (BUNDLED_FOLDER, converted))
    for projection in graph.projections(after):
        scaled = projection.node.input_value(1).get_node()
        stored, scale = (each.get_node() for each in scaled.input_values())
        assert scaled.get_type_name() == "Multiply" and stored.get_type_name() == "Convert"
        assert stored.input_value(0).get_element_type() == openvino.Type.i8
        assert scale.get_element_type() == openvino.Type.f32 and list(scale.shape) == [stored.shape[0], 1]
    operations = [sorted(map(type_of_computed, model.get_ops())) for model in (before, after)]
    assert [name for name in operations[1] if name] == [name for name in operations[0] if name]


def type_of_computed(node: Any) -> str:
    """Empty for what follows from constants alone."""
    values = node.input_values()
    return "" if all(graph.is_constant(value) for value in values) else str(node.get_type_name())


def test_a_converted_model_writes_as_well(converted: Path) -> None:
    assert perplexity(converted, KNOWN) == pytest.approx(perplexity(BUNDLED_FOLDER, KNOWN), rel=0.02)


def without_norm_weights(model: Any) -> None:
    """As the exporter leaves them out where they are all 1."""
    for each in smoothables(graph.projections(model)):
        node = each.activations.get_node()
        constant = [graph.is_constant(value) for value in node.input_values()]
        if node.get_type_name() == "Multiply" and any(constant):
            normed = node.input_value(constant.index(False))
            for target in list(each.activations.get_target_inputs()):
                target.replace_source_output(normed)


def one_matrix_for_gate_and_up(model: Any) -> None:
    """As Phi-3 has it."""
    projections = {projection.name: projection for projection in graph.projections(model)}
    for name, gate in projections.items():
        if "gate_proj" in name:
            up = projections[name.replace("gate_proj", "up_proj")]
            weights = opset13.constant(np.concatenate([gate.weights(), up.weights()]))
            both = opset13.matmul(gate.activations, weights, False, True)
            halves = opset13.variadic_split(both, np.int64(-1), np.array([gate.outputs, up.outputs]))
            for half, projection in enumerate((gate, up)):
                projection.node.output(0).replace(halves.output(half))


@pytest.mark.parametrize(
    "change",
    [lambda model: None, without_norm_weights, one_matrix_for_gate_and_up],
    ids=["plain", "norms without weights", "one matrix for gate and up"],
)
def test_smoothing_alone_changes_no_result(change: Callable[[Any], None]) -> None:
    model = openvino.Core().read_model(str(BUNDLED_FOLDER / XML))
    change(model)
    model.validate_nodes_and_infer_types()
    expected = logits(model)
    projections = graph.projections(model)
    scales, chance = Scales(), np.random.default_rng(1)
    places = smoothables(projections)
    assert len(places) == 4 * LAYERS
    for each in places:
        channels = each.activations.get_partial_shape()[-1]
        size = channels.get_length() if channels.is_static else each.readers[0].weights().shape[1]
        each.smooth(chance.uniform(0.1, 10, size).astype(np.float32), scales)
    for projection in projections:
        weights = opset13.constant(scales.weights(projection))
        projection.node.input(1).replace_source_output(weights.output(0))
    assert np.abs(logits(model) - expected).max() < 1e-3 * np.abs(expected).max()


def test_the_fingerprint_is_another_and_follows_from_the_recipe(converted: Path, tmp_path: Path) -> None:
    """Processors round activations differently, and so weights; but machines of one cluster compare fingerprints."""
    assert weights_served(converted) == StoredWeights.INT8_SYMMETRIC_SMOOTHED
    assert weights_served(BUNDLED_FOLDER) == StoredWeights.INT8_ASYMMETRIC
    assert fingerprint(converted) != fingerprint(BUNDLED_FOLDER)
    again = tmp_path / "again"
    shutil.copytree(converted, again)
    flip_a_bit(again / BIN)
    damaged = fingerprint(again)
    record = json.loads((again / "dray-model.json").read_text())
    record["conversion"]["written"] = graph_digest(again)
    (again / "dray-model.json").write_text(json.dumps(record))
    assert damaged not in (fingerprint(converted), fingerprint(BUNDLED_FOLDER))
    assert fingerprint(again) == fingerprint(converted), "the same recipe on another processor"
    record["conversion"]["recipe"]["source"] = "another model"
    (again / "dray-model.json").write_text(json.dumps(record))
    assert fingerprint(again) != fingerprint(converted)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("record", ["", "[]", '{"weights": "int2"}', '{"conversion": {"recipe": []}}'])
def test_a_record_of_another_program_counts_as_asymmetric(tmp_path: Path, record: str) -> None:
    folder = copy(tmp_path / "model")
    (folder / "dray-model.json").write_text(record)
    assert weights_served(folder) == StoredWeights.INT8_ASYMMETRIC
    assert fingerprint(folder) == fingerprint(BUNDLED_FOLDER)


@pytest.mark.slow
def test_the_old_model_is_replaced_at_once(tmp_path: Path) -> None:
    folder = copy(tmp_path / "model")
    before = folder.stat().st_ino
    left = tmp_path / work_name("model") / "model"
    left.mkdir(parents=True)
    (left / "left").write_text("by a conversion that was killed")
    seen = set()

    def on_step(step: Step) -> None:
        seen.add((folder.stat().st_ino, fingerprint(folder)))

    with (folder / BIN).open("rb") as served:
        convert_folder(folder, folder, on_step)
        assert served.read() == (BUNDLED_FOLDER / BIN).read_bytes(), "who serves the old weights goes on"
    assert seen == {(before, fingerprint(BUNDLED_FOLDER))}
    assert weights_served(folder) == StoredWeights.INT8_SYMMETRIC_SMOOTHED and not (folder / "left").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_is_converted_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = copy(tmp_path / "model")

    def on_step(step: Step) -> None:
        if step.done == 0:
            with pytest.raises(ConversionError, match="another process"):
                convert(folder, folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_folder(folder, folder, on_step)
    assert fingerprint(folder) == fingerprint(BUNDLED_FOLDER)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def dray(*arguments: str, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli", "models", "convert", *arguments],
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=before,
    )


def test_a_full_disk_leaves_the_old_model(tmp_path: Path) -> None:
    folder = copy(tmp_path / "model")

    def small_files_only() -> None:
        # A limit on file sizes makes writes fail as a full disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    done = dray(str(folder), before=small_files_only)
    assert done.returncode == 1 and "error: " in done.stderr and "Traceback" not in done.stderr
    assert fingerprint(folder) == fingerprint(BUNDLED_FOLDER)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_conversion_that_is_killed_leaves_the_old_model(tmp_path: Path) -> None:
    folder = copy(tmp_path / "model")
    command = [sys.executable, "-m", "cluster.models.int8.program"]
    steps = 0

    def on_step(step: Step) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            children = subprocess.run(
                ["pgrep", "-P", str(os.getpid()), "-f", command[-1]], capture_output=True, text=True, check=True
            )
            os.kill(int(children.stdout), signal.SIGKILL)

    with pytest.raises(ConversionError, match="killed"):
        convert_folder(folder, folder, on_step)
    assert fingerprint(folder) == fingerprint(BUNDLED_FOLDER)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_floating_point_weights_are_converted_with_their_table(tmp_path: Path) -> None:
    def to_f32(model: Any) -> None:
        for projection in graph.projections(model):
            projection.node.input(1).replace_source_output(opset13.constant(projection.weights()).output(0))
        for port in graph.lookups(model):
            table = opset13.constant(graph.values(port.get_source_output()))
            port.replace_source_output(table.output(0))

    source = rewrite(tmp_path / "f32", to_f32)
    convert(source, tmp_path / "int8")
    assert (tmp_path / "int8" / BIN).stat().st_size < (source / BIN).stat().st_size / 3
    assert perplexity(tmp_path / "int8", KNOWN) == pytest.approx(perplexity(source, KNOWN), rel=0.02)


def no_text(model: Any) -> None:
    model.output(0).get_tensor().set_names({"last_hidden_state"})


def not_finite(model: Any) -> None:
    projection = graph.projections(model)[0]
    weights = np.full_like(projection.weights(), np.nan)
    projection.node.input(1).replace_source_output(opset13.constant(weights).output(0))


@pytest.mark.parametrize(
    "change, reason", [(no_text, "does not generate text"), (not_finite, "no finite numbers")], ids=["embeds", "broken"]
)
def test_what_cannot_be_converted_is_refused(tmp_path: Path, change: Callable[[Any], None], reason: str) -> None:
    source = rewrite(tmp_path / "model", change)
    with pytest.raises(ConversionError, match=reason):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
def test_the_command_names_what_it_did_and_refuses_a_second_time(tmp_path: Path) -> None:
    folder = copy(tmp_path / "model")
    done = dray(str(folder), "--out", "model-sym")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'model-sym'} is ready: 43 matrices of weights converted, 24 inputs smoothed" in done.stdout
    for arguments, reason in (
        ((str(tmp_path / "model-sym"),), "is converted already"),
        ((str(folder), "--out", "model-sym"), "already exists"),
        ((str(folder), "--out", ".."), "not the name"),
        (("bundled",), "belongs to the program"),
        ((str(tmp_path / "none"),), "does not exist"),
    ):
        refused = dray(*arguments)
        assert refused.returncode == 1 and "\nerror: " in f"\n{refused.stderr}" and reason in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model-sym"]
