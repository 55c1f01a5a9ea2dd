"""Keeping a choice, reading it back, and what `auto` then means."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.cores import processor_flags
from cluster.models.folder import BUNDLED_FOLDER, ServedModel, open_model
from cluster.node import Node, environment
from cluster.settings import ModelSettings, Settings
from cluster.tuning import kept
from cluster.tuning.kept import FILE, engine_choice, find_all, keep
from cluster.tuning.variants import AMX, WEIGHT_ONLY
from deployments.engine.model import config_for
from tests.conftest import records_of

EXACT_WINS = {"weight-only": 1.0, "groups-32": 0.9, "groups-128": 0.9}
GROUPS_WIN = {"weight-only": 1.0, "groups-32": 1.4, "groups-128": 1.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED_FOLDER, tmp_path / "model"))


def model_in(folder: Path, **settings: object) -> ServedModel:
    return open_model(ModelSettings.model_validate({"source": str(folder), **settings}), folder)


def chosen(model: ServedModel, cores: int, data_dir: Path | None = None) -> tuple[str, int, int]:
    """As an engine process on this number of cores gets it."""
    config = config_for(model, tuple(range(cores)), data_dir=data_dir)
    return config.variant, config.graphs[0].group_size, config.max_num_batched_tokens


UNMEASURED = ("weight-only", 0, 512) if processor_flags() >= AMX else ("groups-32", 32, 512)


def test_what_was_kept_for_these_cores_decides(folder: Path, tmp_path: Path) -> None:
    model = model_in(folder)
    assert chosen(model, 2) == UNMEASURED and not engine_choice(model, 2).measured
    assert keep(model, 2, EXACT_WINS, tmp_path / "data", 256) == folder / FILE
    assert chosen(model, 2) == ("weight-only", 0, 256) and engine_choice(model, 2).measured
    assert chosen(model, 1) == UNMEASURED
    keep(model, 1, GROUPS_WIN, tmp_path / "data")
    keep(model, 2, GROUPS_WIN, tmp_path / "data", 1024)
    assert chosen(model, 2) == ("groups-32", 32, 1024)
    assert chosen(model, 1) == ("groups-32", 32, 512) and engine_choice(model, 1).measured
    assert len(json.loads((folder / FILE).read_text())["tunings"]) == 2
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_num_batched_tokens": 1024}, ("groups-32", 32, 1024)),
        ({"precision": "fast"}, ("groups-128", 128, 256)),
        ({"precision": "exact"}, ("weight-only", 0, 256)),
    ],
)
def test_settings_choose_from_what_was_measured(
    folder: Path, settings: dict[str, object], expected: tuple[str, int, int]
) -> None:
    keep(model_in(folder), 2, GROUPS_WIN, folder, 256)
    assert chosen(model_in(folder, **settings), 2) == expected


def test_a_choice_is_kept_in_data_dir_where_the_models_folder_cannot_be_written_to(
    folder: Path, tmp_path: Path
) -> None:
    model, data = model_in(folder), tmp_path / "data"
    (folder / FILE).mkdir()  # permissions do not stop root
    file = keep(model, 2, EXACT_WINS, data, 256)
    assert file.parent == data and file.stat().st_mode & 0o077 == 0
    (folder / FILE).rmdir()
    assert chosen(model, 2, data) == ("weight-only", 0, 256)
    assert chosen(model, 2) == UNMEASURED
    keep(model, 2, GROUPS_WIN, data, 128)
    assert (folder / FILE).is_file() and chosen(model, 2, data) == ("groups-32", 32, 128), "the newest counts"


def test_replicas_on_every_machine_know_its_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(Settings(data_dir=tmp_path)).items():
        monkeypatch.setenv(name, value)
    assert Node.here().data_dir == tmp_path


def test_the_bundled_models_folder_is_never_written_to(bundled: ServedModel, tmp_path: Path) -> None:
    file = keep(bundled, 1, EXACT_WINS, tmp_path / "data")
    assert file.parent == tmp_path / "data" and not (BUNDLED_FOLDER / FILE).exists()
    assert engine_choice(bundled, 1, tmp_path / "data").variant == WEIGHT_ONLY


def test_a_choice_holds_for_one_processor_openvino_and_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(model_in(folder), 2, EXACT_WINS, tmp_path)
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
        lambda path: path.write_text('{"format": 1, "tunings": []}'),
        lambda path: path.write_bytes(path.read_bytes() + b" " * (1 << 16)),
        _replaced(scores={"weight-only": -1}),
        _replaced(scores={"x" * 300: 1}),
        _replaced(scores={str(number): 1 for number in range(100)}),
        _replaced(scores=None),
        _replaced(step_tokens=0),
        _replaced(command="rm"),
        _linked,
        _piped,
    ],
)
def test_a_file_that_is_not_drays_is_ignored_with_a_warning(
    folder: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    model = model_in(folder)
    file = keep(model, 2, EXACT_WINS, folder, 256)
    assert chosen(model, 2) == ("weight-only", 0, 256) and not records_of(caplog, "dray.tuning")
    spoil(file)
    assert chosen(model, 2) == UNMEASURED
    assert [record.levelname for record in records_of(caplog, "dray.tuning")] == ["WARNING"] and str(
        file
    ) in caplog.text
