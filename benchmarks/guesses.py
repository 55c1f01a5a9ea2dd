"""Guessing tokens compared with not guessing, in the engine alone: one stream, greedy, on text that means something.

Two kinds of questions: about a manual in the prompt, whose words the answers repeat, and free ones. Each round asks the
same questions of an engine with guesses and of one without, in turn. Needs a model that understands English; random
weights guess nothing right. `--costs-of MODEL` says what the same guesses would gain if a step took as long as that
model's, whose weights may be random: which guesses are checked then follows from its times.
"""

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.service import report
from cluster.models.folder import ServedModel, open_model
from cluster.settings import BUNDLED, ModelSettings, default_models_dir
from cluster.tuning.kept import engine_choice
from deployments.common.messages import Add, EngineConfig, EngineRequest, Sampling
from deployments.common.prefix import BLOCK_TOKENS
from deployments.common.types import GenerationRequest, Message
from deployments.engine.drafter import Drafter
from deployments.engine.drafts import MAX_GUESSES
from deployments.engine.engine import Engine
from deployments.engine.model import config_for
from deployments.engine.pace import StepPace
from deployments.generation.prompts import PromptRenderer
from deployments.tuning.loads import LoadedVariant, in_turn

_MANUAL = Path(__file__).parent.parent / "docs" / "operations.md"
_MANUAL_CHARACTERS = 6000
ABOUT_THE_MANUAL = (
    "How much memory does an engine need?",
    "What must be done on the nodes before engines run there?",
    "What happens when a pod is deleted?",
    "How are teams and keys created?",
    "How is a rollback done?",
)
FREE = (
    "Explain what photosynthesis is.",
    "Why is the sky blue?",
    "Write a short story about a fisherman.",
    "How do I boil an egg?",
    "What is the difference between a virus and a bacterium?",
)


def prompts(model: ServedModel) -> dict[str, list[list[int]]]:
    """Token ids of the questions, by kind."""
    render = PromptRenderer(model).render
    manual = f"Answer by quoting this manual.\n\n{_MANUAL.read_text()[:_MANUAL_CHARACTERS]}"

    def ids(*messages: Message) -> list[int]:
        return render(GenerationRequest(messages, Sampling(1))).ids

    return {
        "about a manual": [ids(Message("system", manual), Message("user", question)) for question in ABOUT_THE_MANUAL],
        "free": [ids(Message("user", question)) for question in FREE],
    }


_COST_ROUNDS = 9


class PricedPace(StepPace):
    """Takes each step for as long as another model's step of as many tokens. seconds: of all steps so far."""

    def __init__(self, config: EngineConfig, costs: Sequence[float]) -> None:
        """costs: seconds of a step of one token, of two and so on."""
        super().__init__(config.decode_slowdown, config.max_num_batched_tokens, BLOCK_TOKENS)
        self._costs = costs
        self.seconds = 0.0
        for tokens, cost in enumerate(costs, 1):
            super().observe(tokens, 0, cost)

    def observe(self, decoding: int, prompt_tokens: int, seconds: float) -> None:
        if not prompt_tokens:
            seconds = self._costs[decoding - 1]
            self.seconds += seconds
        super().observe(decoding, prompt_tokens, seconds)


class PricedEngine(Engine):
    """An engine with guesses whose steps are priced."""

    def __init__(self, config: EngineConfig, costs: Sequence[float]) -> None:
        super().__init__(config)
        self.pace = self._pace = PricedPace(config, costs)
        self._drafter = Drafter(self._pace)


def step_costs(model: ServedModel) -> list[float]:
    """Seconds of the model's step of one token, of two and so on, as many as a step with guesses may have."""
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    loaded = LoadedVariant(config_for(model, cpus), engine_choice(model, len(cpus)).variant)
    sizes = range(1, MAX_GUESSES + 2)
    times = in_turn([partial(loaded.decode, size) for size in sizes], _COST_ROUNDS)
    return [min(each) for each in times]


def priced(args: argparse.Namespace) -> str:
    model, other = (
        open_model(ModelSettings(source=source), default_models_dir()) for source in (args.model, args.costs_of)
    )
    costs = step_costs(other)
    engine = PricedEngine(config_for(model, tuple(sorted(os.sched_getaffinity(0)))), costs)
    rows = []
    for kind, questions in prompts(model).items():
        before = engine.pace.seconds
        answers = [answer(engine, prompt, args.tokens) for prompt in questions]
        tokens, steps = sum(each[0] for each in answers), sum(each[1] for each in answers)
        seconds = engine.pace.seconds - before
        rows.append([kind, f"{tokens * costs[0] / seconds:.2f}", f"{tokens / steps:.2f}"])
    rows.append([f"a step of 1 to {len(costs)} tokens, ms", " ".join(f"{cost * 1e3:.0f}" for cost in costs), ""])
    heads = ["questions", "ratio", "tokens a step"]
    return report(f"Guessed tokens, {model.name} at the step times of {other.name}", heads, rows)


def answer(engine: Engine, prompt: list[int], tokens: int) -> tuple[int, int, float]:
    """Tokens and steps after the first token, and their seconds. A namespace of its own: no earlier answer helps."""
    engine.add(Add(1, EngineRequest(prompt, Sampling(tokens), namespace=str(time.monotonic_ns()))))
    while not engine.step().streams:
        pass
    generated, steps, began = 0, 0, time.perf_counter()
    while engine.busy:
        generated += sum(len(batch.ids) for batch in engine.step().streams.values())
        steps += 1
    return generated, steps, time.perf_counter() - began


def compare(args: argparse.Namespace) -> str:
    model = open_model(ModelSettings(source=args.model), default_models_dir())
    config = config_for(model, tuple(sorted(os.sched_getaffinity(0))))
    engines = {guess: Engine(msgspec.structs.replace(config, guess_tokens=guess)) for guess in (False, True)}
    for engine in engines.values():
        engine.warm_up()
    rows = []
    for kind, questions in prompts(model).items():
        rates: defaultdict[bool, list[float]] = defaultdict(list)
        per_step: defaultdict[bool, list[float]] = defaultdict(list)
        for round_ in range(args.rounds + 1):
            for guess in sorted(engines, reverse=bool(round_ % 2)):
                answers = [answer(engines[guess], prompt, args.tokens) for prompt in questions]
                tokens, steps, seconds = (sum(column) for column in zip(*answers, strict=True))
                if round_:  # the first one warms up
                    rates[guess].append(tokens / seconds)
                    per_step[guess].append(tokens / steps)
        ratio = median(ours / plain for ours, plain in zip(rates[True], rates[False], strict=True))
        row = [kind, f"{median(rates[False]):.1f}", f"{median(rates[True]):.1f}", f"{ratio:.2f}"]
        rows.append([*row, f"{median(per_step[True]):.2f}"])
    heads = ["questions", "plain, tokens/s", "with guesses, tokens/s", "ratio", "tokens a step"]
    return report(f"Guessed tokens, {model.name}", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--costs-of", help="model whose step times count")
    args = parser.parse_args()
    print(priced(args) if args.costs_of else compare(args))


if __name__ == "__main__":
    main()
