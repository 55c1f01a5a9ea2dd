"""Measuring at a model's first start: once, by one replica, whatever becomes of the variants."""

import fcntl
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cluster.cores import CoreLease, lease_cores
from cluster.launch.unmeasured import announcement, outcome, unmeasured
from cluster.models.folder import BUNDLED_FOLDER, ServedModel, open_model
from cluster.settings import ModelSettings, Settings
from cluster.tuning import first_start
from cluster.tuning.choice import Dropped, Timed
from cluster.tuning.first_start import is_due, measure_once
from cluster.tuning.kept import FILE, engine_choice, find, keep
from cluster.tuning.tasks import TimeTask, TuneError, run_task
from cluster.tuning.variants import FUSED, WEIGHT_ONLY
from tests.conftest import wait_for


@pytest.fixture
def model(tmp_path: Path) -> ServedModel:
    folder = shutil.copytree(BUNDLED_FOLDER, tmp_path / "model")
    return open_model(ModelSettings(source=str(folder)), tmp_path)


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[CoreLease]:
    with lease_cores(1, tmp_path / "cores", owner="test") as lease:
        yield lease


def test_the_first_start_measures_and_the_second_does_not(
    model: ServedModel, lease: CoreLease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_due(model, 1, tmp_path, min_bytes=0) and not is_due(model, 1, tmp_path), "small models are never measured"
    measure_once(model, tmp_path, lease, tmp_path, min_bytes=0)
    found = find(model, 1)
    assert found is not None and set(found.scores) == {"groups-32", "weight-only"} and min(found.scores.values()) > 0
    assert engine_choice(model, 1).measured and not is_due(model, 1, tmp_path, min_bytes=0)
    content = (model.folder / FILE).read_bytes()
    monkeypatch.setattr(first_start, "run_task", None)  # it would fail
    measure_once(model, tmp_path, lease, tmp_path, min_bytes=0)
    assert (model.folder / FILE).read_bytes() == content


def test_what_need_not_be_measured(model: ServedModel, bundled: ServedModel, tmp_path: Path) -> None:
    exact = open_model(ModelSettings(source=str(model.folder), precision="exact"), tmp_path)
    assert not is_due(exact, 1, tmp_path, min_bytes=0), "there is only one way"
    assert not is_due(bundled, 1, tmp_path)
    embedder = open_model(ModelSettings(source=str(model.folder), task="embed"), tmp_path)
    assert not is_due(embedder, 1, tmp_path, min_bytes=0)


def test_replicas_that_start_together_wait_for_the_one_that_measures(
    model: ServedModel, lease: CoreLease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_start, "run_task", None)
    descriptor = os.open(model.folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    waiting = threading.Thread(target=measure_once, args=(model, tmp_path, lease, tmp_path), kwargs={"min_bytes": 0})
    waiting.start()
    keep(model, 1, {"groups-32": 1.0, "weight-only": 1.2}, tmp_path)
    assert waiting.is_alive()
    os.close(descriptor)
    waiting.join(20)
    assert not waiting.is_alive() and engine_choice(model, 1).variant == WEIGHT_ONLY


def test_a_replica_that_has_waited_long_enough_starts_unmeasured(
    model: ServedModel,
    lease: CoreLease,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(first_start, "_MAX_SECONDS", 0.1)
    descriptor = os.open(model.folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    measure_once(model, tmp_path, lease, tmp_path, min_bytes=0)
    os.close(descriptor)
    choice = engine_choice(model, 1)
    assert "another process is measuring" in caplog.text and f"the engine starts with {choice.variant}" in caplog.text
    assert not choice.measured


def _killed(by: signal.Signals, work: Callable[[], object]) -> None:
    """Runs the work, and sends the signal to the process that it starts."""

    def kill() -> None:
        child = wait_for(
            lambda: [each for each in psutil.Process().children() if "tuning.program" in str(each.cmdline())]
        )
        child[0].send_signal(by)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        work()
    finally:
        killer.join()


def test_a_variant_that_dies_is_dropped_by_the_signals_name(
    model: ServedModel, lease: CoreLease, tmp_path: Path
) -> None:
    results: list[object] = []
    _killed(signal.SIGFPE, lambda: results.append(run_task(model, tmp_path, lease, TimeTask(WEIGHT_ONLY))))
    assert results == [Dropped(WEIGHT_ONLY, "killed by SIGFPE")]


def test_an_end_from_outside_says_nothing_of_the_variant(model: ServedModel, lease: CoreLease, tmp_path: Path) -> None:
    with pytest.raises(TuneError, match="killed from outside"):
        _killed(signal.SIGKILL, lambda: run_task(model, tmp_path, lease, TimeTask(WEIGHT_ONLY)))
    with pytest.raises(TuneError, match="not done within"):
        run_task(model, tmp_path, lease, TimeTask(WEIGHT_ONLY), 0.05)


def test_a_variant_that_openvino_does_not_make_is_dropped(model: ServedModel, lease: CoreLease, tmp_path: Path) -> None:
    result = run_task(model, tmp_path, lease, TimeTask(FUSED))
    assert isinstance(result, Dropped) and "did not fuse" in result.reason, "the weights are asymmetric"


def test_scores_are_kept_without_what_died(
    model: ServedModel, lease: CoreLease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_model: object, _dir: object, _lease: object, task: TimeTask, _timeout: float) -> Timed | Dropped:
        if task.variant == WEIGHT_ONLY:
            return Timed(WEIGHT_ONLY, (1, 1, 1, 1), "")
        return Dropped(task.variant, "killed by SIGFPE")

    monkeypatch.setattr(first_start, "run_task", run)
    measure_once(model, tmp_path, lease, tmp_path, min_bytes=0)
    assert engine_choice(model, 1).variant == WEIGHT_ONLY
    assert json.loads((model.folder / FILE).read_text())["tunings"][0]["scores"]["groups-32"] == 0


def test_a_model_that_cannot_be_loaded_keeps_nothing(
    model: ServedModel, lease: CoreLease, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads((model.folder / "config.json").read_text())
    (model.folder / "config.json").write_text(json.dumps({**config, "vocab_size": "many"}))
    measure_once(model, tmp_path, lease, tmp_path, min_bytes=0)
    assert find(model, 1) is None and "no variant of the engine works here" in caplog.text


def test_up_says_what_is_measured_and_what_came_of_it(
    model: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(model=ModelSettings(source=str(model.folder), cores_per_replica=1), data_dir=tmp_path)
    assert unmeasured(settings) == () and not announcement(())
    assert unmeasured(Settings(model=ModelSettings(source="/nowhere"))) == ()
    monkeypatch.setattr("cluster.launch.unmeasured.is_due", lambda *_: True)
    [engine] = unmeasured(settings)
    assert "measuring how model multiplies fastest" in announcement([engine])
    assert "was not measured" in outcome(engine)
    keep(model, 1, {"groups-32": 1.0, "weight-only": 1.2}, tmp_path)
    assert "runs with INT8 weights only, here 1.20 times as fast as INT8 in groups of 32" in outcome(engine)
    keep(model, 1, {"groups-32": 0.0, "weight-only": 1.0}, tmp_path)
    assert "runs with INT8 weights only, here as INT8 in groups of 32 does not work" in outcome(engine)
