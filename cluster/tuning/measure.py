"""`dray tune`: all variants quickly, the fastest carefully, the steps of the chosen one, and cores per replica."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from cluster.cores import CoreLease, lease_cores
from cluster.models.folder import ServedModel, private_memory, repacked_weights
from cluster.settings import BUNDLED
from cluster.tuning.choice import (
    PROMPT_TOKENS,
    AnswerCheck,
    Dropped,
    PromptSpeeds,
    Timed,
    Trial,
    choose,
    choose_step_tokens,
    is_confirmed,
    quick_trials,
    worst_scores,
)
from cluster.tuning.splits import Split, measure_split
from cluster.tuning.tasks import CheckTask, CompareTask, Result, StepSizesTask, Task, TimeTask, TuneError, run_task
from cluster.tuning.variants import WEIGHT_ONLY, Variant, allowed, possible
from cluster.units import plural


class Baseline(msgspec.Struct, frozen=True):
    """The variants that are compared with the most exact one."""

    variants: tuple[Variant, ...]


class Stage(msgspec.Struct, frozen=True):
    """What is measured now, for people."""

    text: str


class Chosen(msgspec.Struct, frozen=True):
    """What the model's engines run with from now on, and what to keep: the scores of all variants by name.

    step_tokens: None where there was no time to measure it.
    """

    variant: Variant
    scores: dict[str, float]
    step_tokens: int | None


Event = Baseline | Stage | Result | Split | Chosen

_NEAR_BEST = 0.85
"""Of the fastest variant's speed in the quick round: slower ones are not measured again."""
_COMPARING_SHARE, _STEPS_SHARE, _REST_SHARE = 0.3, 0.1, 0.45
"""Of the time: for comparing the close ones, for the step sizes, and what must be left to compare one more,
so that there is time for replicas of fewer cores too."""


def memory_to_tune(model: ServedModel) -> int:
    """Bytes: two variants, or one in two replicas, are loaded at a time, one of them perhaps with two graphs, and the
    mapped weights."""
    return model.weights_bytes + 2 * private_memory(model) + repacked_weights(model)


class _Tune:
    """One run of `dray tune`."""

    def __init__(self, model: ServedModel, models_dir: Path, lease: CoreLease, seconds: float) -> None:
        self._model, self._models_dir, self._lease = model, models_dir, lease
        self._deadline, self._seconds = time.monotonic() + seconds, seconds
        self._options = allowed(model, len(lease.cpus))
        self._trials: list[Trial] = []
        self._failed: dict[str, float] = {}
        self._compared: set[Variant] = set()

    @property
    def _scores(self) -> dict[str, float]:
        return {WEIGHT_ONLY.name: 1.0, **worst_scores(self._trials), **self._failed}

    @property
    def _left_s(self) -> float:
        return self._deadline - time.monotonic()

    def _run(self, task: Task) -> Result:
        return run_task(self._model, self._models_dir, self._lease, task)

    def events(self) -> Iterator[Event]:
        variants = possible(self._model, len(self._lease.cpus))
        yield Baseline(tuple(each for each in variants if each != WEIGHT_ONLY))
        yield from self._quickly(variants)
        yield from self._carefully()
        chosen = choose(self._options, self._scores)
        if chosen != WEIGHT_ONLY and self._model.settings.source == BUNDLED:
            yield Stage("letting the chosen variant and the most exact one solve problems")
            check = self._run(CheckTask(chosen))
            yield check
            if not isinstance(check, AnswerCheck) or not check.passed:
                self._failed[chosen.name] = 0.0
                chosen = choose(self._options, self._scores)
        if self._left_s <= 0:
            yield Stage("no time is left for step sizes and replicas of fewer cores; see --seconds")
            yield Chosen(chosen, self._scores, None)
            return
        yield Stage("measuring a prompt in steps of several sizes")
        speeds = self._run(StepSizesTask(chosen, self._seconds * _STEPS_SHARE))
        yield speeds
        if not isinstance(speeds, PromptSpeeds):
            raise TuneError(f"the engine does not work with {chosen}; nothing was kept")
        yield from self._splits()
        yield Chosen(chosen, self._scores, choose_step_tokens(speeds.by_step_tokens))

    def _quickly(self, variants: Sequence[Variant]) -> Iterator[Event]:
        """Each variant alone, for seconds; those of two graphs follow from their graphs."""
        timed: list[Timed] = []
        single = [each for each in variants if each.longer is None]
        for number, variant in enumerate(single, 1):
            yield Stage(f"quick round, {number} of {len(single)}: {variant}")
            result = self._run(TimeTask(variant, PROMPT_TOKENS))
            if isinstance(result, Timed):
                timed.append(result)
                yield result
            elif isinstance(result, Dropped):
                self._failed[variant.name] = 0.0
                yield result
                if variant == WEIGHT_ONLY:
                    raise TuneError(f"{variant} does not work here ({result.reason}); nothing was kept")
        if len(timed) == 1 < len(single):
            raise TuneError("no other variant of the engine works here; nothing was kept")
        self._trials = quick_trials(timed, [each for each in variants if each != WEIGHT_ONLY])
        yield from self._trials

    def _carefully(self) -> Iterator[Event]:
        """The allowed variants that are not far behind, each in turn with the most exact one, the fastest first.

        The fastest is compared in any case, so that one lucky trial does not decide.
        """
        quick = self._scores
        options = [each for each in self._options if each != WEIGHT_ONLY and quick.get(each.name)]
        best = max((quick[each.name] for each in options), default=0.0)
        close = [each for each in options if quick[each.name] >= _NEAR_BEST * best]
        seconds = self._seconds * _COMPARING_SHARE / max(1, len(close))
        while True:
            chosen = choose(self._options, self._scores)
            open_ = sorted(set(close) - self._compared, key=lambda each: quick[each.name], reverse=True)
            if not is_confirmed(self._trials, chosen):
                variant = chosen
            elif open_ and self._left_s > self._seconds * _REST_SHARE:
                variant = open_[0]
            else:
                return
            self._compared.add(variant)
            yield Stage(f"comparing: {variant}")
            yield self._trial(variant, seconds)

    def _splits(self) -> Iterator[Event]:
        """The lease's cores as one replica, and as two of half as many each."""
        cores = len(self._lease.cpus)
        for replicas in (1, 2) if cores % 2 == 0 else ():
            if self._left_s <= 0:
                yield Stage("no time is left to measure replicas of fewer cores; see --seconds")
                return
            yield Stage(f"measuring {plural(replicas, 'replica')} of {plural(cores // replicas, 'core')}")
            variant = choose(allowed(self._model, cores // replicas), self._scores)
            if split := measure_split(self._model, self._models_dir, self._lease, variant, replicas):
                yield split

    def _trial(self, variant: Variant, seconds: float) -> Result:
        result = self._run(CompareTask(variant, seconds))
        if isinstance(result, Trial):
            self._trials.append(result)
        else:
            self._failed[variant.name] = 0.0
        return result


def measure(model: ServedModel, models_dir: Path, cores: int, lease_dir: Path, *, seconds: float) -> Iterator[Event]:
    """Yields each result once it is there; the last is Chosen.

    seconds: how long it should take; loading a large model, and one turn of each load, may take longer. Raises
    NotEnoughCores, LeasesUnavailable, TuneError.
    """
    with lease_cores(cores, lease_dir, owner="tune") as lease:
        yield from _Tune(model, models_dir, lease, seconds).events()
