"""Effect of single engine settings, measured in the engine alone, in turn on the same cores.

Measures many decoding streams with short prompts; then, for a long prompt that arrives while a few streams decode, its
time to first token and the streams' longest pause. For the bundled model, also its accuracy on held-out problems; for
other models, `dray models compare` shows what a setting costs in quality.
"""

import argparse
import random
import time
from collections import defaultdict
from statistics import median
from typing import Any

from benchmarks.pipelines import add, pipeline, read, run
from benchmarks.service import report
from cluster.models.folder import ServedModel, open_model
from cluster.settings import BUNDLED, ModelSettings, default_models_dir
from demo.measure import asked
from demo.problems import FAMILIES
from deployments.common.messages import Sampling
from deployments.common.types import GenerationRequest, Message
from deployments.generation.prompts import PromptRenderer

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as Dray sets it": ({}, {}),
    "128 tokens in a step": ({"max_num_batched_tokens": 128}, {}),
    "256 tokens in a step": ({"max_num_batched_tokens": 256}, {}),
    "2048 tokens in a step": ({"max_num_batched_tokens": 2048}, {}),
    "whole prompts in a step": ({"dynamic_split_fuse": False, "max_num_batched_tokens": 4096}, {}),
    "16 sequences": ({"max_num_seqs": 16}, {}),
    "64 sequences": ({"max_num_seqs": 64}, {}),
    "activations not quantised": ({}, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}),
    "activations in groups of 32": ({}, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 32}),
    "KV cache in BF16": ({}, {"KV_CACHE_PRECISION": "bf16"}),
    "KV cache's values in U4": ({}, {"VALUE_CACHE_PRECISION": "u4"}),
}
"""Changed settings: of the scheduler, and of the compiled model."""
_SHORT, _BESIDE, _FOREVER = 32, 8, 1000
_LONGEST = 400


def ids(length: int, vocabulary: int) -> list[int]:
    """A prompt that shares no prefix with any other."""
    return [random.randrange(vocabulary) for _ in range(length)]


def decoding(made: Any, vocabulary: int, streams: int, tokens: int) -> float:
    """Tokens/s of all streams, prompts included."""
    handles = [add(made, one, ids(_SHORT, vocabulary), tokens, ignore_eos=True) for one in range(streams)]
    began = time.perf_counter()
    run(made)
    took = time.perf_counter() - began
    return sum(len(read(one)) for one in handles) / took


def beside(made: Any, vocabulary: int, prompt: int) -> tuple[float, float]:
    """Seconds to a prompt's first token beside decoding streams, and of the longest step meanwhile."""
    streams = [add(made, one, ids(_SHORT, vocabulary), _FOREVER, ignore_eos=True) for one in range(_BESIDE)]
    while not all(read(one) for one in streams):
        made.step()
    began, longest = time.perf_counter(), 0.0
    asked_for = add(made, _BESIDE, ids(prompt, vocabulary), 1, ignore_eos=True)
    while not asked_for.can_read():
        step = time.perf_counter()
        made.step()
        longest = max(longest, time.perf_counter() - step)
    took = time.perf_counter() - began
    for one in streams:
        one.cancel()
    made.step()
    return took, longest


def right(made: Any, model: ServedModel, count: int) -> float:
    """The bundled model's accuracy on held-out problems, this many of each family."""
    prompts, marks = PromptRenderer(model), []
    for family in FAMILIES:
        problems = asked(family, "numbers", count)
        questions = [GenerationRequest((Message("user", one.question),), Sampling(_LONGEST)) for one in problems]
        rendered = [prompts.render(one) for one in questions]
        handles = [add(made, number, one.ids, _LONGEST) for number, one in enumerate(rendered)]
        run(made)
        for problem, question, prompt, handle in zip(problems, questions, rendered, handles, strict=True):
            reader = prompts.parser(question, prompt)
            reader.feed(read(handle))
            reader.finish()
            marks.append(problem.answered_by(reader.text))
    return sum(marks) / len(marks)


def compare(args: argparse.Namespace) -> str:
    model = open_model(ModelSettings(source=args.model), default_models_dir())
    vocabulary = PromptRenderer(model).vocabulary.size
    decoded, late, waited, marks = (defaultdict[str, list[float]](list) for _ in range(4))
    for number in range(args.rounds):
        for name, (scheduler, properties) in VARIANTS.items():
            made = pipeline(model, scheduler=scheduler, properties=properties)
            decoding(made, vocabulary, args.streams, 4)  # repacks the weights, and runs each batch size once
            decoded[name].append(decoding(made, vocabulary, args.streams, args.tokens))
            first, longest = beside(made, vocabulary, args.prompt)
            late[name].append(first)
            waited[name].append(longest)
            if not number and args.model == BUNDLED:
                marks[name].append(right(made, model, args.problems))
            del made
    usual = next(iter(VARIANTS))

    def over(figures: dict[str, list[float]], name: str) -> str:
        return f"{median(one / base for one, base in zip(figures[name], figures[usual], strict=True)):.2f}"

    rows = []
    for name in VARIANTS:
        row = [name, f"{median(decoded[name]):.0f} ({over(decoded, name)})"]
        row += [f"{1000 * median(one[name]):.0f} ({over(one, name)})" for one in (late, waited)]
        rows.append([*row, *(f"{one:.1%}" for one in marks.get(name, []))])
    heads = ["set", f"{args.streams} streams, tokens/s", f"first token of {args.prompt}, ms", "streams wait, ms"]
    title = f"The engine's settings, {model.name} (in brackets: over what Dray sets)"
    return report(title, [*heads, *(["right answers"] if marks else [])], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--streams", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=48, help="tokens per stream")
    parser.add_argument("--prompt", type=int, default=1000, help="tokens of the long prompt")
    parser.add_argument("--problems", type=int, default=60, help="problems per family, for the bundled model")
    parser.add_argument("--rounds", type=int, default=3)
    print(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
