"""Guessing tokens beside plain decoding, in the engine alone, on questions of the bundled model.

Prompt lookup guesses the next tokens from what came before (n-grams of up to 3), a draft model by a smaller model; one
step then checks them: fewer steps, each of more tokens. Rounds alternate; the answers must be the same. A draft for the
bundled model: `python -m demo.train --out build/draft --hidden 128 --layers 2 --minutes 25`, then `dray models export
build/draft build/draft-int8`.
"""

import argparse
import os
import time
from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy

from benchmarks.service import report
from cluster.models.folder import ServedModel, open_model
from cluster.settings import ModelSettings, default_models_dir
from deployments.engine.wire import Sampling
from deployments.prompts import Prompts
from deployments.question import Question, Turn

_NGRAM = 3
_KV_BLOCKS = 2000


def pipeline(model: ServedModel, cores: int, *, lookup: bool = False, draft: str = "") -> Any:
    """As Dray's engines make it, but that prompt lookup wants whole prompts in a step. draft: folder of a model."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.num_kv_blocks = _KV_BLOCKS
    scheduler.max_num_seqs = 32
    scheduler.max_num_batched_tokens = 4096
    scheduler.dynamic_split_fuse = not lookup
    scheduler.enable_prefix_caching = True
    properties: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": cores,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": model.settings.dynamic_quantization_group_size,
        "sampler_num_threads": cores,
    }
    if lookup:
        properties["prompt_lookup"] = True
    if draft:
        properties["draft_model"] = openvino_genai.draft_model(draft, "CPU", INFERENCE_NUM_THREADS=cores)
    return openvino_genai.ContinuousBatchingPipeline(str(model.folder), scheduler, "CPU", properties)


@dataclass(frozen=True)
class Way:
    """A way of decoding. guesses: tokens that one step checks at most beyond the one it makes. ngram: of a lookup."""

    name: str
    pipeline: Any
    guesses: int = 0
    ngram: int = 0


def answers(way: Way, prompts: list[list[int]], tokens: int) -> tuple[list[list[int]], int, float]:
    """The completions of all prompts at a time, the steps that they took, and tokens a second."""
    import openvino
    import openvino_genai

    handles, made = [], way.pipeline
    for number, ids in enumerate(prompts):
        config = openvino_genai.GenerationConfig()
        config.apply_chat_template = False
        config.do_sample = False
        config.max_new_tokens = tokens
        config.num_assistant_tokens, config.max_ngram_size = way.guesses, way.ngram
        handles.append(made.add_request(number, openvino.Tensor(numpy.array([ids], dtype=numpy.int64)), config))
    began, steps = time.perf_counter(), 0
    while made.has_non_finished_requests():
        made.step()
        steps += 1
    took = time.perf_counter() - began
    said = []
    for handle in handles:
        ids = []
        while handle.can_read():
            for output in handle.read().values():
                ids += output.generated_ids
        said.append(ids)
    return said, steps, sum(map(len, said)) / took


def ways(model: ServedModel, guesses: list[int], draft: str) -> list[Way]:
    """Plain decoding first."""
    cores = len(os.sched_getaffinity(0))
    lookup = pipeline(model, cores, lookup=True)
    made = [Way("plain", pipeline(model, cores))]
    made += [Way(f"lookup, {count} tokens", lookup, count, _NGRAM) for count in guesses]
    if draft:
        drafted = pipeline(model, cores, draft=draft)
        made += [Way(f"draft, {count} tokens", drafted, count) for count in guesses]
    return made


def compare(args: argparse.Namespace) -> str:
    model = open_model(ModelSettings(), default_models_dir())
    render = Prompts(model).render
    plain, *others = ways(model, args.guesses, args.draft)
    rows = []
    for streams in args.streams:
        texts = [f"What is {345 + number} times {678 + number}?" for number in range(streams)]
        prompts = [render(Question((Turn("user", text),), Sampling(1))).ids for text in texts]
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
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--guesses", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--draft", default="", help="folder of a smaller model with the same tokenizer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=300)
    print(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
