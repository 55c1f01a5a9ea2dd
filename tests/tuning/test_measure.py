"""The stages of `dray tune`: what is measured again, and what is not where the time is short."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.cores import lease_cores
from cluster.models.folder import ServedModel
from cluster.tuning import measure as module
from cluster.tuning.choice import Dropped, LoadTimes, PromptSpeeds, Timed, Trial
from cluster.tuning.measure import Chosen, Event, Stage, measure
from cluster.tuning.report import progress
from cluster.tuning.tasks import CompareTask, Result, StepSizesTask, Task, TimeTask, TuneError
from cluster.tuning.variants import GROUPS_32, GROUPS_128, WEIGHT_ONLY, Variant

LOADS = ((1, 1), (8, 8), (32, 32), (0, 512))


def tune(
    model: ServedModel,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    quick: dict[Variant, float],
    careful: dict[Variant, float],
    seconds: float = 1000.0,
) -> tuple[list[Event], list[Task]]:
    """The events and tasks of a run in which each task finds these speeds; 0: the variant does not work."""
    tasks: list[Task] = []

    def run_task(model: ServedModel, models_dir: Path, lease: object, task: Task) -> Result:
        tasks.append(task)
        match task:
            case TimeTask() if quick[task.variant]:
                return Timed(task.variant, (1 / quick[task.variant],) * 4, "", LOADS)
            case CompareTask():
                speed = careful[task.variant]
                return Trial(task.variant, tuple(LoadTimes(*load, 1.0, 1 / speed, speed) for load in LOADS))
            case StepSizesTask():
                return PromptSpeeds({128: 1.0})
        return Dropped(task.variant, "killed")

    monkeypatch.setattr(module, "run_task", run_task)
    monkeypatch.setattr(module, "possible", lambda *_: (WEIGHT_ONLY, GROUPS_32, GROUPS_128))
    monkeypatch.setattr(module, "allowed", lambda *_: (GROUPS_128, GROUPS_32, WEIGHT_ONLY))
    return list(measure(model, folder, 1, folder / "l", seconds=seconds)), tasks


def compared(tasks: list[Task]) -> list[Variant]:
    return [task.variant for task in tasks if isinstance(task, CompareTask)]


def chosen(events: list[Event]) -> Variant:
    assert isinstance(events[-1], Chosen)
    return events[-1].variant


@pytest.fixture
def other(bundled: ServedModel, tmp_path: Path) -> ServedModel:
    """A model without problems to solve."""
    return replace(bundled, settings=bundled.settings.model_copy(update={"source": str(tmp_path)}))


def test_close_variants_are_compared_and_the_others_dropped(
    other: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {WEIGHT_ONLY: 1.0, GROUPS_32: 1.9, GROUPS_128: 2.0}
    events, tasks = tune(other, tmp_path, monkeypatch, quick, {GROUPS_32: 1.9, GROUPS_128: 1.5})
    assert compared(tasks) == [GROUPS_128, GROUPS_32] and chosen(events) == GROUPS_32
    events, tasks = tune(other, tmp_path, monkeypatch, quick | {GROUPS_32: 1.2}, {GROUPS_128: 1.9})
    assert compared(tasks) == [GROUPS_128] and chosen(events) == GROUPS_128


def test_without_time_the_fastest_is_still_confirmed(
    other: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {WEIGHT_ONLY: 1.0, GROUPS_32: 1.9, GROUPS_128: 2.0}
    events, tasks = tune(other, tmp_path, monkeypatch, quick, {GROUPS_128: 1.95}, seconds=0)
    assert compared(tasks) == [GROUPS_128] and chosen(events) == GROUPS_128
    assert not [task for task in tasks if isinstance(task, StepSizesTask)]
    assert isinstance(events[-1], Chosen) and events[-1].step_tokens is None


def test_what_no_variant_gains_is_not_compared(
    other: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {WEIGHT_ONLY: 1.0, GROUPS_32: 0.0, GROUPS_128: 0.5}
    events, tasks = tune(other, tmp_path, monkeypatch, quick, {GROUPS_128: 0.5}, seconds=0)
    assert compared(tasks) == [] and chosen(events) == WEIGHT_ONLY


def test_each_step_is_told_before_it_and_with_its_result(
    other: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {WEIGHT_ONLY: 1.0, GROUPS_32: 0.0, GROUPS_128: 2.0}
    events, tasks = tune(other, tmp_path, monkeypatch, quick, {GROUPS_128: 2.0})
    assert len([event for event in events if isinstance(event, Stage)]) == len(tasks)
    lines = [line for event in events if (line := progress(event))]
    assert lines[:4] == [
        "quick round, 1 of 3: INT8 weights only",
        "  INT8 weights only, tokens/s: 1 stream 1.0, 8 streams 8.0, 32 streams 32.0, prompt of 512 512.0",
        "quick round, 2 of 3: INT8 in groups of 32",
        "  INT8 in groups of 32 does not work here: killed",
    ]
    assert "  INT8 in groups of 128: 2.00 times as fast as INT8 weights only" in lines


def test_where_nothing_works_nothing_is_kept(
    other: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for speeds in ({WEIGHT_ONLY: 0.0}, {WEIGHT_ONLY: 1.0, GROUPS_32: 0.0, GROUPS_128: 0.0}):
        with pytest.raises(TuneError, match="nothing was kept"):
            tune(other, tmp_path, monkeypatch, speeds, {})
    with lease_cores(1, tmp_path / "l", owner="test"):
        pass
