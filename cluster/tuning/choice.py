"""Chooses the engine's arithmetic and step size from measured times.

A variant's score is how many times as fast as the default it is: the geometric mean over four loads, which count the
same: streams that decode (1, 8 and 32 of them) and a prompt of 512 tokens. So a variant that doubles one load's speed
and halves another's scores 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import geometric_mean

import msgspec

from cluster.settings import DEFAULT_GROUP_SIZE, Precision

MIN_GAIN = 1.05
"""A variant must be this many times as fast as the default to be chosen: less may be noise."""
GROUP_SIZES = (32, 64, 128)
STREAMS = (1, 8, 32)
PROMPT_TOKENS = 512
STEP_SIZES = (128, 256, 512, 1024)
_NEAR_BEST = 0.95
MAX_LOST_ANSWERS = 0.02
"""Share of the problems by which a less precise variant may solve fewer."""


class Variant(msgspec.Struct, frozen=True):
    """A number format and a group size, as the settings inference_precision and dynamic_quantization_group_size."""

    precision: Precision
    group_size: int

    @property
    def is_less_precise(self) -> bool:
        """Whether it quantizes activations that the default computes in bf16.

        f32 is a variant only where OpenVINO's own choice is another format.
        """
        return self.precision == "f32"

    def __str__(self) -> str:
        return f"{'default' if self.precision == 'auto' else self.precision}, groups of {self.group_size}"


DEFAULT = Variant("auto", DEFAULT_GROUP_SIZE)


class LoadTimes(msgspec.Struct, frozen=True):
    """Median seconds of a step under one load, with the default and with a variant, measured in turn.

    streams: that decode; 0 for a prompt. tokens: that the step computes. speedup: how many times as fast the variant
    is, the median over the turns: other load lasts longer than a turn, so it slows both steps of one alike.
    """

    streams: int
    tokens: int
    default_s: float
    variant_s: float
    speedup: float

    def __str__(self) -> str:
        if not self.streams:
            return f"prompt of {self.tokens}"
        return "1 stream" if self.streams == 1 else f"{self.streams} streams"


class Trial(msgspec.Struct, frozen=True, tag=True):
    """A variant beside the default."""

    variant: Variant
    loads: tuple[LoadTimes, ...]

    @property
    def score(self) -> float:
        """How many times as fast as the default: the geometric mean over the loads."""
        return geometric_mean(load.speedup for load in self.loads)


class AnswerCheck(msgspec.Struct, frozen=True, tag=True):
    """How many of the bundled model's held-out problems the default and a variant solve."""

    variant: Variant
    problems: int
    default_right: int
    variant_right: int

    @property
    def passed(self) -> bool:
        return self.default_right - self.variant_right <= MAX_LOST_ANSWERS * self.problems


class PromptSpeeds(msgspec.Struct, frozen=True, tag=True):
    """Prompt tokens a second with each maximum of tokens in a step."""

    by_step_tokens: dict[int, float]


def candidates(own_precision: Precision) -> Iterator[Variant]:
    """The variants to compare with the default. own_precision: what OpenVINO chooses on this processor."""
    for precision in ("auto", "f32") if own_precision == "bf16" else ("auto",):
        for size in GROUP_SIZES:
            if (variant := Variant(precision, size)) != DEFAULT:
                yield variant


def choose(trials: Sequence[Trial], *, allow_lower_precision: bool) -> Variant:
    """The variant with the highest score, if it beats the default by MIN_GAIN; else the default."""
    scores = {
        variant: score
        for variant, score in worst_scores(trials).items()
        if score >= MIN_GAIN and (allow_lower_precision or not variant.is_less_precise)
    }
    return max(scores, key=scores.__getitem__, default=DEFAULT)


def worst_scores(trials: Sequence[Trial]) -> dict[Variant, float]:
    """Each variant's score; of several trials of one the lowest, so that one lucky trial does not decide."""
    scores: dict[Variant, float] = {}
    for trial in trials:
        scores[trial.variant] = min(trial.score, scores.get(trial.variant, trial.score))
    return scores


def is_confirmed(trials: Sequence[Trial], variant: Variant) -> bool:
    """Whether a choice needs no second trial."""
    return variant == DEFAULT or sum(trial.variant == variant for trial in trials) > 1


def forgone(trials: Sequence[Trial], chosen: Variant) -> tuple[Variant, float] | None:
    """The fastest of the less precise variants and its score, if it was not chosen and would win MIN_GAIN over the
    chosen one."""
    scores = worst_scores(trials)
    best = max(scores, key=lambda variant: variant.is_less_precise and scores[variant], default=DEFAULT)
    if not best.is_less_precise or scores[best] < scores.get(chosen, 1.0) * MIN_GAIN:
        return None
    return best, scores[best]


def choose_step_tokens(speeds: Mapping[int, float]) -> int:
    """The smallest step whose prompt speed is within 5 % of the best: small steps disturb running streams least."""
    best = max(speeds.values())
    return min(size for size, speed in speeds.items() if speed >= _NEAR_BEST * best)
