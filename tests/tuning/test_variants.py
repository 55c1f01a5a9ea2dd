"""Which ways to multiply a precision allows, by the model's weights, its losses and the processor."""

import json
import os
import shutil
from pathlib import Path

import pytest

from cluster.memory import memory_size
from cluster.models.folder import BUNDLED_FOLDER, ServedModel, memory_needed, open_model
from cluster.settings import ModelSettings
from cluster.tuning.variants import (
    AMX,
    FUSED,
    GROUPS_32,
    GROUPS_64,
    GROUPS_128,
    LAYERS,
    LIMITS,
    MIXED_64,
    MIXED_128,
    MIXED_128_LAYERS,
    SMALL_BYTES,
    WEIGHT_ONLY,
    Loss,
    Variant,
    allowed,
    forgone,
    format_here,
    loss,
    possible,
    presumed,
)

ON_AMX = AMX | {"avx2", "avx512_vnni", "avx512_bf16"}
ON_VNNI = frozenset({"avx2", "avx512_vnni", "avx512_bf16"})
ON_ARM: frozenset[str] = frozenset()
SMOOTHED = {"weights": "int8-symmetric-smoothed"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED_FOLDER, tmp_path / "model"))


def model_in(folder: Path, record: object, **settings: object) -> ServedModel:
    (folder / "dray-model.json").write_text(json.dumps(record))
    return open_model(ModelSettings.model_validate({"source": str(folder), **settings}), folder)


@pytest.mark.parametrize(
    ("record", "flags", "cores", "balanced", "fast"),
    [
        ({}, ON_AMX, 2, (GROUPS_32, WEIGHT_ONLY), (GROUPS_128, WEIGHT_ONLY)),
        (
            SMOOTHED,
            ON_AMX,
            2,
            (GROUPS_64, FUSED, WEIGHT_ONLY, MIXED_64),
            (GROUPS_128, LAYERS, FUSED, WEIGHT_ONLY, MIXED_128_LAYERS),
        ),
        # With one thread the fused operation divides by zero.
        (SMOOTHED, ON_AMX, 1, (GROUPS_64, WEIGHT_ONLY), (GROUPS_128, WEIGHT_ONLY)),
        (SMOOTHED, ON_VNNI, 2, (GROUPS_64, WEIGHT_ONLY), (GROUPS_128, WEIGHT_ONLY)),
        ({"weights": "another"}, ON_AMX, 2, (GROUPS_32, WEIGHT_ONLY), (GROUPS_128, WEIGHT_ONLY)),
        ({"weight": "fp16"}, ON_AMX, 2, (WEIGHT_ONLY,), (WEIGHT_ONLY,)),
    ],
)
def test_what_each_precision_allows(
    folder: Path,
    record: object,
    flags: frozenset[str],
    cores: int,
    balanced: tuple[Variant, ...],
    fast: tuple[Variant, ...],
) -> None:
    assert allowed(model_in(folder, record), cores, flags) == balanced, "balanced is the default"
    assert allowed(model_in(folder, record, precision="fast"), cores, flags) == fast
    assert allowed(model_in(folder, record, precision="exact"), cores, flags) == (WEIGHT_ONLY,)


def test_no_precision_allows_more_than_its_limit(folder: Path) -> None:
    for weights in ("int8-asymmetric", "int8-symmetric-smoothed"):
        for precision, limit in LIMITS.items():
            model = model_in(folder, {"weights": weights}, precision=precision)
            for variant in allowed(model, 2, ON_AMX):
                assert (lost := loss(model, variant)) is not None and lost.within(limit)


def test_two_graphs_lose_what_the_worse_of_them_loses(folder: Path) -> None:
    assert loss(model_in(folder, SMOOTHED), MIXED_128) == Loss(0.012, 0.0093)
    assert loss(model_in(folder, SMOOTHED), MIXED_128_LAYERS) == Loss(0.0161, 0.0093)


def test_attention_multiplies_in_int8_only_where_mlps_are_fused(folder: Path) -> None:
    model = model_in(folder, SMOOTHED)
    for cores, flags, roles in ((2, ON_AMX, {("o",), ("qkv", "o")}), (1, ON_AMX, set()), (2, ON_VNNI, set())):
        parts = [part for variant in possible(model, cores, flags) for part in variant.parts]
        assert {part.quantized_inputs for part in parts if part.fused} == roles
        assert not any(part.quantized_inputs for part in parts if not part.fused)


@pytest.mark.parametrize(
    "record",
    [[], {"weights": ["int8-symmetric-smoothed"]}, {"weight": 3}],
)
def test_a_record_that_is_not_drays_counts_for_nothing(folder: Path, record: object) -> None:
    assert allowed(model_in(folder, record), 2, ON_AMX) == (GROUPS_32, WEIGHT_ONLY)


def test_small_models_keep_bf16_where_the_processor_multiplies_in_it(folder: Path) -> None:
    model = model_in(folder, {})
    assert presumed(model, allowed(model, 2, ON_AMX), ON_AMX) == WEIGHT_ONLY
    assert presumed(model, allowed(model, 2, ON_VNNI), ON_VNNI) == GROUPS_32
    os.truncate(folder / "openvino_model.bin", SMALL_BYTES)
    model = model_in(folder, {})
    assert presumed(model, allowed(model, 2, ON_AMX), ON_AMX) == GROUPS_32


def test_two_graphs_need_a_machine_with_memory_for_them(folder: Path) -> None:
    replicas = memory_size() // 2 // memory_needed(model_in(folder, SMOOTHED))
    assert MIXED_64 in possible(model_in(folder, SMOOTHED, replicas=replicas // 2), 2, ON_AMX)
    assert MIXED_64 not in possible(model_in(folder, SMOOTHED, replicas=replicas + 1), 2, ON_AMX)


def test_doctor_hears_what_the_folder_keeps_the_processor_from(folder: Path, bundled: ServedModel) -> None:
    model = model_in(folder, {})
    assert f"run `dray models convert {folder}`" in forgone(model, 2, ON_AMX)
    assert not forgone(model, 1, ON_AMX) and not forgone(model, 2, ON_VNNI)
    assert not forgone(model_in(folder, {}, precision="exact"), 2, ON_AMX)
    assert not forgone(model_in(folder, SMOOTHED), 2, ON_AMX)
    assert not forgone(bundled, 2, ON_AMX), "nobody can convert the program's own model"


def test_bf16_is_only_for_processors_that_multiply_in_it(folder: Path) -> None:
    assert format_here(WEIGHT_ONLY, ON_AMX) == "auto"
    assert format_here(WEIGHT_ONLY, ON_VNNI) == "f32", "OpenVINO would take bf16 here, at a fifth of the speed"
    assert format_here(WEIGHT_ONLY, ON_ARM) == "auto"
    assert format_here(GROUPS_32, ON_AMX) == "f32" and format_here(FUSED, ON_AMX) == "bf16"
    assert len(possible(model_in(folder, {}), 2)) == 3
