"""Speculative decoding compared with plain decoding, in the engine alone, on questions of the bundled model.

Prompt lookup guesses the next tokens from earlier ones (n-grams of up to 3), a draft model with a smaller model. One
step then checks them: fewer steps with more tokens each. Rounds alternate; the answers must be equal. A draft for the
bundled model: `python -m demo.train --out build/draft --hidden 128 --layers 2 --minutes 15`, then `dray models export
build/draft build/draft-int8`. With random weights hardly any guess is right, which shows the cost of guessing.
"""

import argparse
import os
import time
from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.pipelines import add, pipeline, read, run
from benchmarks.service import report
from cluster.models.folder import ServedModel, open_model
from cluster.settings import BUNDLED, ModelSettings, default_models_dir
from deployments.common.messages import Sampling
from deployments.common.types import GenerationRequest, Message
from deployments.generation.prompts import PromptRenderer

_NGRAM = 3
_WHOLE_PROMPTS = {"dynamic_split_fuse": False, "max_num_batched_tokens": 4096}
"""Prompt lookup needs whole prompts in a step."""


@dataclass(frozen=True)
class Way:
    """A method of decoding. guesses: maximum tokens checked per step beyond the one generated. ngram: for lookup."""

    name: str
    pipeline: Any
    guesses: int = 0
    ngram: int = 0


def answers(way: Way, prompts: list[list[int]], tokens: int) -> tuple[list[list[int]], int, float]:
    """The completions of all prompts, decoded together; their steps; and tokens/s."""
    made, guessing = way.pipeline, {"num_assistant_tokens": way.guesses, "max_ngram_size": way.ngram}
    handles = [add(made, number, ids, tokens, **guessing) for number, ids in enumerate(prompts)]
    began = time.perf_counter()
    steps = run(made)
    took = time.perf_counter() - began
    said = [read(handle) for handle in handles]
    return said, steps, sum(map(len, said)) / took


def ways(model: ServedModel, guesses: list[int], draft: str) -> list[Way]:
    """The methods, plain decoding first."""
    import openvino_genai

    lookup = pipeline(model, scheduler=_WHOLE_PROMPTS, properties={"prompt_lookup": True})
    made = [Way("plain", pipeline(model))]
    made += [Way(f"lookup, {count} tokens", lookup, count, _NGRAM) for count in guesses]
    if draft:
        threads = len(os.sched_getaffinity(0))
        smaller = openvino_genai.draft_model(draft, "CPU", INFERENCE_NUM_THREADS=threads)
        drafted = pipeline(model, properties={"draft_model": smaller})
        made += [Way(f"draft, {count} tokens", drafted, count) for count in guesses]
    return made


def compare(args: argparse.Namespace) -> str:
    model = open_model(ModelSettings(source=args.model), default_models_dir())
    render = PromptRenderer(model).render
    plain, *others = ways(model, args.guesses, args.draft)
    rows = []
    for streams in args.streams:
        texts = [f"What is {345 + number} times {678 + number}?" for number in range(streams)]
        prompts = [render(GenerationRequest((Message("user", text),), Sampling(1))).ids for text in texts]
        right = answers(plain, prompts, args.tokens)[0]
        rates: defaultdict[str, list[float]] = defaultdict(list)
        taken: dict[str, int] = {}
        same: defaultdict[str, bool] = defaultdict(lambda: True)
        for _ in range(args.rounds):
            for way in (plain, *others):
                said, taken[way.name], rate = answers(way, prompts, args.tokens)
                same[way.name] &= said == right
                rates[way.name].append(rate)
        for name, found in rates.items():
            ratio = median(one / other for one, other in zip(found, rates[plain.name], strict=True))
            told = "yes" if same[name] else "no"
            rows.append([str(streams), name, str(taken[name]), f"{median(found):.0f}", f"{ratio:.2f}", told])
    heads = ["streams", "decoding", "steps", "tokens/s", "over plain", "same answers"]
    return report(f"Guessing tokens, {model.name}", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--guesses", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--draft", default="", help="folder of a smaller model with the same tokenizer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=300)
    print(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
