"""The results of `dray tune` as a table, as sentences and as JSON."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from cluster.tuning.choice import DEFAULT, AnswerCheck, PromptSpeeds, Trial, forgone, worst_scores
from cluster.tuning.measure import Baseline, Chosen, Event


@dataclass
class Results:
    """What was measured of a model, as far as the measurement has come. source: as it was given to the command."""

    source: str
    baseline: Baseline | None = None
    trials: list[Trial] = field(default_factory=list)
    answers: AnswerCheck | None = None
    speeds: dict[int, float] = field(default_factory=dict)
    chosen: Chosen | None = None

    def add(self, event: Event) -> None:
        match event:
            case Baseline():
                self.baseline = event
            case Trial():
                self.trials.append(event)
            case AnswerCheck():
                self.answers = event
            case PromptSpeeds():
                self.speeds = event.by_step_tokens
            case Chosen():
                self.chosen = event

    @property
    def stage(self) -> str:
        """What is being measured now."""
        if self.baseline is None:
            return "loading the model"
        if (done := len(self.trials)) < self.baseline.variants:
            return f"variant {done + 1} of {self.baseline.variants}"
        return "the fastest again, and prompts by step size"

    def table(self) -> Table:
        """The speed of the default, and how many times as fast each variant is."""
        assert self.trials
        table = Table(title="Times as fast as the default", title_justify="left")
        table.add_column("variant")
        for load in self.trials[0].loads:
            table.add_column(str(load), justify="right")
        table.add_column("score", justify="right")
        own = self.baseline.own_precision if self.baseline else ""
        speeds = (f"{load.tokens / load.default_s:.1f} tok/s" for load in self.trials[-1].loads)
        table.add_row(f"{DEFAULT} ({own})", *speeds, "1.00")
        for trial in self.trials:
            table.add_row(str(trial.variant), *(f"{load.speedup:.2f}" for load in trial.loads), f"{trial.score:.2f}")
        return table

    def sentences(self) -> Iterator[str]:
        """What was found and chosen."""
        assert self.chosen is not None
        by_size = ", ".join(f"{speed:.0f} in steps of {size}" for size, speed in sorted(self.speeds.items()))
        yield f"Prompt tokens/s: {by_size}."
        if (check := self.answers) is not None:
            right = f"the default {check.default_right}, {check.variant} {check.variant_right}"
            verdict = "" if check.passed else ": too few, so that is not chosen"
            yield f"Held-out problems solved, of {check.problems}: {right}{verdict}."
        variant = self.chosen.variant
        gain = "" if variant == DEFAULT else f", {worst_scores(self.trials)[variant]:.2f} times as fast as the default"
        yield f"Chosen: {variant}{gain}; up to {self.chosen.step_tokens} tokens in a step."
        if variant.is_less_precise and self.answers is None:
            yield "The answers were not checked: compare some of your own before you serve it."
        if self.answers is None and (faster := forgone(self.trials, variant)) is not None:
            yield (
                f"{faster[0]} would be {faster[1]:.2f} times as fast as the default. It quantizes activations "
                f"that bf16 does not, which costs a little accuracy, so it is chosen only if you allow it: "
                f"dray tune {self.source} --allow-lower-precision"
            )

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        assert self.chosen is not None and self.baseline is not None
        faster = forgone(self.trials, self.chosen.variant)
        return {
            "own_precision": self.baseline.own_precision,
            "variants": [
                {
                    "precision": trial.variant.precision,
                    "group_size": trial.variant.group_size,
                    "score": round(trial.score, 3),
                    "loads": [
                        {
                            "load": str(load),
                            "default_tokens_per_s": round(load.tokens / load.default_s, 2),
                            "tokens_per_s": round(load.tokens / load.variant_s, 2),
                        }
                        for load in trial.loads
                    ],
                }
                for trial in self.trials
            ],
            "prompt_tokens_per_s": {str(size): round(speed, 1) for size, speed in self.speeds.items()},
            "answers": None
            if self.answers is None
            else {
                "problems": self.answers.problems,
                "default_right": self.answers.default_right,
                "variant_right": self.answers.variant_right,
                "passed": self.answers.passed,
            },
            "chosen": {
                "inference_precision": self.chosen.variant.precision,
                "dynamic_quantization_group_size": self.chosen.variant.group_size,
                "max_num_batched_tokens": self.chosen.step_tokens,
            },
            "faster_if_less_precise": None if faster is None else round(faster[1], 3),
        }
