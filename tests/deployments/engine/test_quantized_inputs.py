"""Rounding what attention's projections read: nearly the same logits, and kernels that multiply in INT8."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
import pytest
from openvino import opset13

from cluster.cores import processor_flags
from cluster.models.folder import BUNDLED_FOLDER, open_model
from cluster.models.identity import GRAPH_FILE
from cluster.models.int8 import graph
from cluster.models.int8.activations import windows
from cluster.models.text_loss import ARITHMETIC
from cluster.settings import ModelSettings
from cluster.tuning.variants import AMX, FUSED, GROUPS_128, LAYERS, MIXED_128_LAYERS, WEIGHT_ONLY, Role, Variant
from demo.problems import make
from deployments.engine.model import Chunk, PagedModel, config_for, with_variant
from deployments.engine.quantized_inputs import quantize_inputs

DEPTH = 6
"""Layers of the bundled model."""
IDS = windows(BUNDLED_FOLDER, make(Random(1), "cage", "zh").thinking, 64)[0]
Change = Callable[[Any], None]


def symmetric(change: Change = lambda model: None) -> Any:
    """The bundled model with symmetric weights, changed before."""
    model = openvino.Core().read_model(str(BUNDLED_FOLDER / GRAPH_FILE))
    change(model)
    tables = {graph.key(graph.stored(port.get_source_output())): port for port in graph.lookups(model)}
    for projection in graph.projections(model):
        weights = graph.symmetric(projection.weights())
        if projection.is_embedding:
            tables[graph.key(graph.stored(projection.node.input_value(1)))].replace_source_output(weights)
        projection.node.input(1).replace_source_output(weights)
    model.validate_nodes_and_infer_types()
    return model


def layers(model: Any) -> Iterator[list[graph.Projection]]:
    """Each layer's q, k and v."""
    found = {projection.name: projection for projection in graph.projections(model)}
    for name, query in found.items():
        if "q_proj" in name:
            yield [query, *(found[name.replace("q_proj", f"{each}_proj")] for each in "kv")]


def one_matrix(model: Any) -> None:
    """For q, k and v, as Phi-3 has it."""
    for parts in layers(model):
        weights = opset13.constant(np.concatenate([part.weights() for part in parts]))
        whole = opset13.matmul(parts[0].activations, weights, False, True)
        split = opset13.variadic_split(whole, np.int64(-1), np.array([part.outputs for part in parts]))
        for index, part in enumerate(parts):
            part.node.output(0).replace(split.output(index))


def normed(model: Any) -> None:
    """Queries and keys, as in Qwen3."""
    for query, key, _ in layers(model):
        for part in (query, key):
            product = part.node.output(0)
            readers = product.get_target_inputs()
            size = opset13.sqrt(opset13.reduce_mean(opset13.multiply(product, product), np.array([-1]), keep_dims=True))
            divided = opset13.divide(product, size)
            for reader in readers:
                reader.replace_source_output(divided.output(0))


def nameless(model: Any) -> None:
    """As models from GGUF files are."""
    for number, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"n_{number}")


def logits(model: Any) -> npt.NDArray[np.float32]:
    request = openvino.Core().compile_model(model, "CPU", dict(ARITHMETIC["f32"])).create_infer_request()
    inputs = {
        "input_ids": np.array([IDS]),
        "attention_mask": np.ones((1, len(IDS)), np.int64),
        "position_ids": np.arange(len(IDS))[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    request.infer(inputs)
    return np.array(request.get_tensor("logits").data)


def rounded(model: Any) -> int:
    return sum(node.get_type_name() == "FakeQuantize" for node in model.get_ops())


@pytest.mark.parametrize(
    "change",
    [lambda model: None, one_matrix, normed, nameless],
    ids=["plain", "one matrix for q, k and v", "norms of q and k", "no names"],
)
def test_projections_are_known_by_their_places_and_rounding_changes_little(change: Change) -> None:
    expected = logits(symmetric(change))
    found = {}
    choices: list[tuple[Role, ...]] = [("qkv",), ("o",), ("qkv", "o")]
    for roles in choices:
        model = symmetric(change)
        quantize_inputs(model, roles)
        assert rounded(model) == DEPTH * len(roles), "q, k and v share a rounded input"
        found[roles] = np.linalg.norm(logits(model) - expected) / np.linalg.norm(expected)
    assert min(found.values()) > 0 and max(found.values()) < 0.03


def in_groups(model: Any) -> None:
    """Symmetric, but with two scales for each row."""
    for projection in graph.projections(model):
        rows, columns = (weights := projection.weights()).shape
        halves = graph.symmetric(weights.reshape(rows * 2, columns // 2))
        projection.node.input(1).replace_source_output(opset13.reshape(halves, [rows, columns], False).output(0))


def floating(model: Any) -> None:
    for projection in graph.projections(model):
        projection.node.input(1).replace_source_output(opset13.constant(projection.weights()).output(0))


@pytest.mark.parametrize("change", [lambda model: None, in_groups, floating], ids=["asymmetric", "groups", "f32"])
def test_other_weights_stay_as_they_are(change: Change) -> None:
    model = openvino.Core().read_model(str(BUNDLED_FOLDER / GRAPH_FILE))
    change(model)
    operations = len(model.get_ops())
    quantize_inputs(model, ("qkv", "o"))
    assert (rounded(model), len(model.get_ops())) == (0, operations)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("symmetric") / "model"
    shutil.copytree(BUNDLED_FOLDER, target)
    openvino.save_model(symmetric(), str(target / GRAPH_FILE), compress_to_fp16=False)
    (target / "dray-model.json").write_text(json.dumps({"weights": "int8-symmetric-smoothed"}))
    return target


def loaded(folder: Path, variant: Variant) -> PagedModel:
    cpus = tuple(sorted(os.sched_getaffinity(0)))[:2]
    model = open_model(ModelSettings(source=str(folder), kv_cache_mb=64), folder)
    return PagedModel(with_variant(config_for(model, cpus), variant))


def first_tokens(model: PagedModel) -> npt.NDArray[np.float32]:
    return np.array(model.forward([Chunk(IDS, 0, range(len(IDS)), len(IDS))]))


@pytest.mark.skipif(
    not processor_flags() >= AMX or len(os.sched_getaffinity(0)) < 2, reason="needs two cores of a processor with AMX"
)
@pytest.mark.parametrize(
    ("variant", "by_token"), [(FUSED, DEPTH), (LAYERS, 4 * DEPTH), (MIXED_128_LAYERS, 4 * DEPTH)], ids=str
)
def test_the_processor_multiplies_attention_in_int8(folder: Path, variant: Variant, by_token: int) -> None:
    exact, model = loaded(folder, WEIGHT_ONLY), loaded(folder, variant)
    expected, found = first_tokens(exact), first_tokens(model)
    assert "bf16 bf16" not in model.multiplications, "the head keeps INT8 weights"
    assert f"{by_token} FullyConnected brgemm_avx512_amx_i8 " in model.multiplications
    assert f"{DEPTH} LLMMLP" in model.multiplications
    assert np.linalg.norm(found - expected) < 0.06 * np.linalg.norm(expected)


def test_nothing_changes_where_nothing_is_rounded(folder: Path) -> None:
    for variant in (WEIGHT_ONLY, GROUPS_128):
        model = loaded(folder, variant)
        first_tokens(model)
        assert "amx_i8" not in model.multiplications
