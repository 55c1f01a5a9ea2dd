"""Chooses the engine's arithmetic and step size from measured times.

A variant's score says how many times as fast as another one it is: the geometric mean over four loads, which count the
same: streams that decode (1, 8 and 32 of them) and a prompt of 512 tokens. So a variant that doubles one load's speed
and halves another's scores 1.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import geometric_mean

import msgspec

from cluster.tuning.variants import WEIGHT_ONLY, Variant
from cluster.units import plural

MIN_GAIN = 1.05
"""A variant must be this many times as fast as the most exact one to be chosen: less may be noise. One of two graphs
must be this many times as fast as the best of a single graph, since it takes more memory."""
STREAMS = (1, 8, 32)
PROMPT_TOKENS = 512
FIRST_PROMPT_TOKENS = 128
"""At a first start, which should take little time: the ratios between variants hardly depend on the length."""
STEP_SIZES = (128, 256, 512, 1024)
_NEAR_BEST = 0.95
MAX_LOST_ANSWERS = 0.02
"""Share of the problems by which a variant may solve fewer than the most exact one."""


class LoadTimes(msgspec.Struct, frozen=True):
    """Median seconds of a step under one load, with the most exact variant and with another, measured in turn.

    streams: that decode; 0 for a prompt. tokens: that the step computes. speedup: how many times as fast the variant
    is, the median over the turns: other load lasts longer than a turn, so it slows both steps of one alike.
    """

    streams: int
    tokens: int
    exact_s: float
    variant_s: float
    speedup: float

    def __str__(self) -> str:
        return load_name(self.streams, self.tokens)


def load_name(streams: int, tokens: int) -> str:
    """What a load is called in tables."""
    return plural(streams, "stream") if streams else f"prompt of {tokens}"


class Trial(msgspec.Struct, frozen=True, tag=True):
    """A variant beside the most exact one."""

    variant: Variant
    loads: tuple[LoadTimes, ...]

    @property
    def score(self) -> float:
        """How many times as fast as the most exact variant: the geometric mean over the loads."""
        return geometric_mean(load.speedup for load in self.loads)


class Dropped(msgspec.Struct, frozen=True, tag=True):
    """A variant that does not work here, and why."""

    variant: Variant
    reason: str


class Timed(msgspec.Struct, frozen=True, tag=True):
    """A variant's least seconds under each load, measured alone. multiplications: how its graph multiplies.

    loads: streams and tokens of each, as in LoadTimes.
    """

    variant: Variant
    seconds: tuple[float, ...]
    multiplications: str
    loads: tuple[tuple[int, int], ...] = ()


class AnswerCheck(msgspec.Struct, frozen=True, tag=True):
    """How many of the bundled model's held-out problems the most exact variant and another one solve."""

    variant: Variant
    problems: int
    exact_right: int
    variant_right: int

    @property
    def passed(self) -> bool:
        return self.exact_right - self.variant_right <= MAX_LOST_ANSWERS * self.problems


class PromptSpeeds(msgspec.Struct, frozen=True, tag=True):
    """Prompt tokens a second with each maximum of tokens in a step."""

    by_step_tokens: dict[int, float]


def choose(options: Sequence[Variant], scores: Mapping[str, float]) -> Variant:
    """The fastest, if it beats the most exact one by MIN_GAIN; where none was measured, the first not known to fail.

    options: as `allowed` returns them. scores: by name; 0 where a variant does not work here.
    """
    measured = {variant: score for variant in options if (score := scores.get(variant.name, 0.0))}
    if not measured:
        return next((variant for variant in options if variant.name not in scores), WEIGHT_ONLY)
    single = {variant: score for variant, score in measured.items() if variant.longer is None}
    best = max(measured, key=measured.__getitem__)
    if best.longer is not None and single and measured[best] < MIN_GAIN * max(single.values()):
        best = max(single, key=single.__getitem__)
    return best if measured[best] >= MIN_GAIN * measured.get(WEIGHT_ONLY, 0.0) else WEIGHT_ONLY


def worst_scores(trials: Sequence[Trial]) -> dict[str, float]:
    """Each variant's score by name; of several trials of one the lowest, so that one lucky trial does not decide."""
    scores: dict[str, float] = {WEIGHT_ONLY.name: 1.0} if trials else {}
    for trial in trials:
        scores[trial.variant.name] = min(trial.score, scores.get(trial.variant.name, trial.score))
    return scores


def scores_of(timed: Sequence[Timed], dropped: Sequence[Dropped], options: Sequence[Variant]) -> dict[str, float]:
    """Scores over the first that was timed, by name.

    options: all that are allowed. One of two graphs was not timed: each load takes the time of the graph that is the
    faster, if both were.
    """
    seconds = {each.variant.name: each.seconds for each in timed}
    for mixed in options:
        graphs = [seconds[name] for name in mixed.single if name in seconds]
        if mixed.longer is not None and len(graphs) == len(mixed.single):
            seconds[mixed.name] = tuple(map(min, *graphs))
    first = timed[0].seconds
    return {each.variant.name: 0.0 for each in dropped} | {
        name: geometric_mean(other / own for other, own in zip(first, all_, strict=True))
        for name, all_ in seconds.items()
    }


def quick_trials(timed: Sequence[Timed], variants: Sequence[Variant]) -> list[Trial]:
    """Each variant beside the first that was timed. variants: one of two graphs takes the better time of each load."""
    seconds = {each.variant.name: each.seconds for each in timed}
    exact = timed[0]
    trials: list[Trial] = []
    for variant in variants:
        graphs = [seconds[name] for name in variant.single if name in seconds]
        if len(graphs) == len(variant.single):
            own: Iterable[float] = map(min, *graphs) if len(graphs) > 1 else graphs[0]
            times = zip(exact.loads, exact.seconds, own, strict=True)
            loads = (LoadTimes(*load, base, time, base / time) for load, base, time in times)
            trials.append(Trial(variant, tuple(loads)))
    return trials


def is_confirmed(trials: Sequence[Trial], variant: Variant) -> bool:
    """Whether a choice needs no second trial."""
    return variant == WEIGHT_ONLY or sum(trial.variant == variant for trial in trials) > 1


def choose_step_tokens(speeds: Mapping[int, float]) -> int:
    """The smallest step whose prompt speed is within 5 % of the best: small steps disturb running streams least."""
    best = max(speeds.values())
    return min(size for size, speed in speeds.items() if speed >= _NEAR_BEST * best)
