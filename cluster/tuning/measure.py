"""`dray tune`: all variants of an engine beside the most exact one, the chosen one's steps, and cores per replica."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from cluster.cores import CoreLease, lease_cores
from cluster.models.folder import ServedModel, private_memory, repacked_weights
from cluster.settings import BUNDLED
from cluster.tuning.choice import (
    AnswerCheck,
    Dropped,
    PromptSpeeds,
    Trial,
    choose,
    choose_step_tokens,
    is_confirmed,
    worst_scores,
)
from cluster.tuning.splits import Split, measure_split
from cluster.tuning.tasks import CheckTask, CompareTask, Result, StepSizesTask, Task, TuneError, run_task
from cluster.tuning.variants import WEIGHT_ONLY, Variant, allowed, possible


class Baseline(msgspec.Struct, frozen=True):
    """The variants that are compared with the most exact one."""

    variants: tuple[Variant, ...]


class Chosen(msgspec.Struct, frozen=True):
    """What the model's engines run with from now on, and what to keep: the scores of all variants by name."""

    variant: Variant
    scores: dict[str, float]
    step_tokens: int


Event = Baseline | Result | Split | Chosen


def memory_to_tune(model: ServedModel) -> int:
    """Bytes: two variants, or one in two replicas, are loaded at a time, one of them perhaps with two graphs, and the
    mapped weights."""
    return model.weights_bytes + 2 * private_memory(model) + repacked_weights(model)


class _Tune:
    """One run of `dray tune`."""

    def __init__(self, model: ServedModel, models_dir: Path, lease: CoreLease, rounds: int) -> None:
        self._model, self._models_dir, self._lease, self._rounds = model, models_dir, lease, rounds
        self._options = allowed(model, len(lease.cpus))
        self._trials: list[Trial] = []
        self._failed: dict[str, float] = {}
        self._reason = ""

    @property
    def _scores(self) -> dict[str, float]:
        return {WEIGHT_ONLY.name: 1.0, **worst_scores(self._trials), **self._failed}

    def _run(self, task: Task) -> Result:
        return run_task(self._model, self._models_dir, self._lease, task)

    def events(self) -> Iterator[Event]:
        variants = tuple(each for each in possible(self._model, len(self._lease.cpus)) if each != WEIGHT_ONLY)
        yield Baseline(variants)
        for variant in variants:
            yield self._trial(variant)
        if variants and not self._trials:
            raise TuneError(f"no variant of the engine works here ({self._reason}); nothing was kept")
        while not is_confirmed(self._trials, chosen := choose(self._options, self._scores)):
            yield self._trial(chosen)
        if chosen != WEIGHT_ONLY and self._model.settings.source == BUNDLED:
            check = self._run(CheckTask(chosen))
            yield check
            if not isinstance(check, AnswerCheck) or not check.passed:
                self._failed[chosen.name] = 0.0
                chosen = choose(self._options, self._scores)
        speeds = self._run(StepSizesTask(chosen, self._rounds))
        yield speeds
        if not isinstance(speeds, PromptSpeeds):
            raise TuneError(f"the engine does not work with {chosen}; nothing was kept")
        yield from self._splits()
        yield Chosen(chosen, self._scores, choose_step_tokens(speeds.by_step_tokens))

    def _splits(self) -> Iterator[Split]:
        """The lease's cores as one replica, and as two of half as many each."""
        cores = len(self._lease.cpus)
        for replicas in (1, 2) if cores % 2 == 0 else ():
            variant = choose(allowed(self._model, cores // replicas), self._scores)
            if split := measure_split(self._model, self._models_dir, self._lease, variant, replicas):
                yield split

    def _trial(self, variant: Variant) -> Result:
        result = self._run(CompareTask(variant, self._rounds))
        if isinstance(result, Trial):
            self._trials.append(result)
        else:
            self._failed[variant.name] = 0.0
            self._reason = result.reason if isinstance(result, Dropped) else ""
        return result


def measure(model: ServedModel, models_dir: Path, cores: int, lease_dir: Path, *, rounds: int) -> Iterator[Event]:
    """Yields each result once it is there; the last is Chosen. Raises NotEnoughCores, LeasesUnavailable, TuneError."""
    with lease_cores(cores, lease_dir, owner="tune") as lease:
        yield from _Tune(model, models_dir, lease, rounds).events()
