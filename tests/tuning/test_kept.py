"""Keeping a choice, reading it back, and what `auto` then means."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.models.folder import BUNDLED_FOLDER, ServedModel, open_model
from cluster.node import Node, environment
from cluster.settings import ModelSettings, Settings
from cluster.tuning import kept
from cluster.tuning.choice import Variant
from cluster.tuning.kept import FILE, engine_choice, find_all, keep
from deployments.engine.model import config_for

F32 = Variant("f32", 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED_FOLDER, tmp_path / "model"))


def model_in(folder: Path, **settings: object) -> ServedModel:
    return open_model(ModelSettings.model_validate({"source": str(folder), **settings}), folder)


def chosen(model: ServedModel, cores: int, data_dir: Path | None = None) -> tuple[str, int, int]:
    """As an engine process on this number of cores gets it."""
    config = config_for(model, tuple(range(cores)), data_dir=data_dir)
    return config.inference_precision, config.dynamic_quantization_group_size, config.max_num_batched_tokens


def test_auto_is_what_was_kept_for_these_cores(folder: Path, tmp_path: Path) -> None:
    model = model_in(folder)
    assert chosen(model, 2) == ("auto", 128, 512)
    assert keep(model, 2, F32, 256, tmp_path / "data") == folder / FILE
    assert chosen(model, 2) == ("f32", 64, 256)
    assert chosen(model, 1) == ("auto", 128, 512)
    keep(model, 1, Variant("auto", 32), 128, tmp_path / "data")
    keep(model, 2, Variant("auto", 128), 1024, tmp_path / "data")
    assert chosen(model, 2) == ("auto", 128, 1024) and chosen(model, 1) == ("auto", 32, 128)
    assert len(json.loads((folder / FILE).read_text())["tunings"]) == 2
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_num_batched_tokens": 1024}, ("f32", 64, 1024)),
        ({"inference_precision": "bf16"}, ("bf16", 128, 256)),
        ({"dynamic_quantization_group_size": 0}, ("auto", 0, 256)),
        ({"inference_precision": "f32", "dynamic_quantization_group_size": 128}, ("f32", 128, 256)),
    ],
)
def test_explicit_settings_decide(folder: Path, settings: dict[str, object], expected: tuple[str, int, int]) -> None:
    keep(model_in(folder), 2, F32, 256, folder)
    assert chosen(model_in(folder, **settings), 2) == expected


def test_a_choice_is_kept_in_data_dir_where_the_models_folder_cannot_be_written_to(
    folder: Path, tmp_path: Path
) -> None:
    model, data = model_in(folder), tmp_path / "data"
    (folder / FILE).mkdir()  # permissions do not stop root
    file = keep(model, 2, F32, 256, data)
    assert file.parent == data and file.stat().st_mode & 0o077 == 0
    (folder / FILE).rmdir()
    assert chosen(model, 2, data) == ("f32", 64, 256)
    assert chosen(model, 2) == ("auto", 128, 512)
    keep(model, 2, Variant("auto", 32), 128, data)
    assert (folder / FILE).is_file() and chosen(model, 2, data) == ("auto", 32, 128), "the newest counts"


def test_replicas_on_every_machine_know_its_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(Settings(data_dir=tmp_path)).items():
        monkeypatch.setenv(name, value)
    assert Node.here().data_dir == tmp_path


def test_the_bundled_models_folder_is_never_written_to(bundled: ServedModel, tmp_path: Path) -> None:
    file = keep(bundled, 1, F32, 256, tmp_path / "data")
    assert file.parent == tmp_path / "data" and not (BUNDLED_FOLDER / FILE).exists()
    assert engine_choice(bundled, 1, tmp_path / "data").precision == "f32"


def test_a_choice_holds_for_one_processor_openvino_and_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(model_in(folder), 2, F32, 256, tmp_path)
    for name, value in (("processor_name", lambda: "another"), ("version", lambda package: "2019.1")):
        with monkeypatch.context() as patched:
            patched.setattr(kept, name, value)
            assert find_all(model_in(folder)) == []
    assert len(find_all(model_in(folder))) == 1
    with (folder / "openvino_model.bin").open("r+b") as weights:
        weights.write(b"other weights")
    assert find_all(model_in(folder)) == []


def _replaced(**changes: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = json.loads(path.read_text())
        content["tunings"][0] |= changes
        path.write_text(json.dumps(content))

    return change


def _linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("no JSON"),
        lambda path: path.write_text("[" * 50_000),
        lambda path: path.write_text('{"format": 2, "tunings": []}'),
        lambda path: path.write_bytes(path.read_bytes() + b" " * (1 << 16)),
        _replaced(precision="f64"),
        _replaced(step_tokens=0),
        _replaced(group_size=10**12),
        _replaced(command="rm"),
        _linked,
        _piped,
    ],
)
def test_a_file_that_is_not_drays_is_ignored_with_a_warning(
    folder: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    model = model_in(folder)
    file = keep(model, 2, F32, 256, folder)
    assert chosen(model, 2) == ("f32", 64, 256) and not caplog.records
    spoil(file)
    assert chosen(model, 2) == ("auto", 128, 512)
    assert [record.levelname for record in caplog.records] == ["WARNING"] and str(file) in caplog.text
