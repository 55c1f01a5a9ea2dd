"""The results of `dray tune` as a table, as sentences and as JSON."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster.models.folder import ServedModel
from cluster.settings import DEFAULT_STEP_TOKENS
from cluster.tables import DataTable
from cluster.tuning.choice import AnswerCheck, Dropped, PromptSpeeds, Timed, Trial, load_name
from cluster.tuning.measure import Chosen, Event, Stage
from cluster.tuning.splits import Split
from cluster.tuning.variants import LIMITS, WEIGHT_ONLY, Loss, Variant, loss


@dataclass
class Results:
    """What was measured of a model, as far as the measurement has come."""

    model: ServedModel
    trials: list[Trial] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    answers: AnswerCheck | None = None
    speeds: dict[int, float] = field(default_factory=dict)
    splits: list[Split] = field(default_factory=list)
    chosen: Chosen | None = None

    def add(self, event: Event) -> None:
        match event:
            case Trial():
                # The more careful one comes later.
                self.trials = [trial for trial in self.trials if trial.variant != event.variant] + [event]
            case Dropped():
                self.dropped.append(event)
            case AnswerCheck():
                self.answers = event
            case PromptSpeeds():
                self.speeds = event.by_step_tokens
            case Split():
                self.splits.append(event)
            case Chosen():
                self.chosen = event

    def table(self) -> DataTable:
        """The speed of the most exact variant, how many times as fast each other one is, and what each loses."""
        loads = [str(load) for load in self.trials[0].loads]
        figures = (*loads, "score", "loss, KL", "perplexity")
        title, drop = f"Times as fast as {WEIGHT_ONLY}", ("perplexity", "loss, KL", *loads[1:-1], loads[-1], loads[0])
        table = DataTable("variant", *figures, title=title, right=figures, drop=drop)
        speeds = (f"{load.tokens / load.exact_s:.1f} tok/s" for load in self.trials[-1].loads)
        table.add_row(str(WEIGHT_ONLY), *speeds, "1.00", *_loss(loss(self.model, WEIGHT_ONLY)))
        for trial in self.trials:
            ratios = (f"{load.speedup:.2f}" for load in trial.loads)
            table.add_row(str(trial.variant), *ratios, f"{trial.score:.2f}", *_loss(loss(self.model, trial.variant)))
        return table

    def sentences(self) -> Iterator[str]:
        """What was found and chosen."""
        assert self.chosen is not None
        for each in self.dropped:
            yield f"{_capital(each.variant)} does not work here: {each.reason}."
        if self.speeds:
            by_size = ", ".join(f"{speed:.0f} in steps of {size}" for size, speed in sorted(self.speeds.items()))
            yield f"Prompt tokens/s: {by_size}."
        if (check := self.answers) is not None:
            right = f"{WEIGHT_ONLY} {check.exact_right}, {check.variant} {check.variant_right}"
            verdict = "" if check.passed else ": too few, so that is not chosen"
            yield f"Held-out problems solved, of {check.problems}: {right}{verdict}."
        variant, precision = self.chosen.variant, self.model.settings.precision
        gain = "" if variant == WEIGHT_ONLY else f", {self._score(variant):.2f} times as fast as {WEIGHT_ONLY}"
        yield f"Chosen for precision {precision}: {variant}{gain}; up to {self._step_tokens} tokens in a step."
        for split in self.splits:
            yield (
                f"{split.replicas} replica(s) of {split.cores} core(s), {split.variant}: "
                f"{split.decoded_tokens_per_s:.1f} tokens/s with {split.streams} streams in all, "
                f"{split.prompt_tokens_per_s:.0f} prompt tokens/s."
            )
        if faster := self._faster():
            limit = LIMITS.get(precision)
            why = f"at most {limit.kl:g} nats and {limit.perplexity:.0%}" if limit else "nothing beyond the weights'"
            yield (
                f"{_capital(faster)} would be {self._score(faster):.2f} times as fast, but loses more than "
                f"precision {precision} allows ({why}); see the setting `model.precision`."
            )

    @property
    def _step_tokens(self) -> int:
        assert self.chosen is not None
        return self.chosen.step_tokens or DEFAULT_STEP_TOKENS

    def _faster(self) -> Variant | None:
        """The fastest variant that the precision does not allow, if it is faster than the chosen one."""
        assert self.chosen is not None
        limit = LIMITS.get(self.model.settings.precision)
        lossy = [
            each.variant
            for each in self.trials
            if limit is None or (lost := loss(self.model, each.variant)) is None or not lost.within(limit)
        ]
        best = max(lossy, key=self._score, default=WEIGHT_ONLY)
        return best if self._score(best) > self._score(self.chosen.variant) else None

    def _score(self, variant: Variant) -> float:
        """As the table shows it: of the last trial."""
        return next((trial.score for trial in self.trials if trial.variant == variant), 1.0)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        assert self.chosen is not None
        return {
            "precision": self.model.settings.precision,
            "variants": [
                {
                    "variant": trial.variant.name,
                    "score": round(trial.score, 3),
                    "loads": [
                        {
                            "load": str(load),
                            "exact_tokens_per_s": round(load.tokens / load.exact_s, 2),
                            "tokens_per_s": round(load.tokens / load.variant_s, 2),
                        }
                        for load in trial.loads
                    ],
                }
                for trial in self.trials
            ],
            "dropped": {each.variant.name: each.reason for each in self.dropped},
            "prompt_tokens_per_s": {str(size): round(speed, 1) for size, speed in self.speeds.items()},
            "splits": [
                {
                    "replicas": split.replicas,
                    "cores": split.cores,
                    "variant": split.variant.name,
                    "streams": split.streams,
                    "tokens_per_s": round(split.decoded_tokens_per_s, 1),
                    "prompt_tokens_per_s": round(split.prompt_tokens_per_s, 1),
                }
                for split in self.splits
            ],
            "answers": None
            if self.answers is None
            else {
                "problems": self.answers.problems,
                "exact_right": self.answers.exact_right,
                "variant_right": self.answers.variant_right,
                "passed": self.answers.passed,
            },
            "chosen": {"variant": self.chosen.variant.name, "max_num_batched_tokens": self._step_tokens},
        }


def _loss(value: Loss | None) -> tuple[str, str]:
    return ("?", "?") if value is None else (f"{value.kl:.4f}", f"{value.perplexity:+.2%}")


def _capital(variant: Variant) -> str:
    return str(variant)[:1].upper() + str(variant)[1:]


def progress(event: Event) -> str | None:
    """A line about a result, for those who wait; None where there is nothing to say."""
    match event:
        case Stage():
            return event.text
        case Timed():
            speeds = (
                f"{load_name(streams, tokens)} {tokens / seconds:.1f}"
                for (streams, tokens), seconds in zip(event.loads, event.seconds, strict=True)
            )
            return f"  {event.variant}, tokens/s: {', '.join(speeds)}"
        case Trial():
            return f"  {event.variant}: {event.score:.2f} times as fast as {WEIGHT_ONLY}"
        case Dropped():
            return f"  {event.variant} does not work here: {event.reason}"
        case AnswerCheck():
            return f"  solved: {event.exact_right} and {event.variant_right} of {event.problems}"
        case PromptSpeeds():
            speeds = (f"{speed:.0f} in steps of {size}" for size, speed in sorted(event.by_step_tokens.items()))
            return f"  tokens/s: {', '.join(speeds)}"
        case Split():
            return f"  {event.decoded_tokens_per_s:.1f} tokens/s, {event.prompt_tokens_per_s:.0f} prompt tokens/s"
    return None
