"""Prompt lookup beside plain decoding, in the engine alone, on questions of the bundled model.

Prompt lookup guesses the next tokens from what came before (n-grams of up to 3) and lets one step check them: fewer
steps, each of more tokens. Rounds alternate; the answers must be the same.
"""

import argparse
import os
import time
from collections import defaultdict
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


def pipeline(model: ServedModel, cores: int, *, lookup: bool) -> Any:
    """As Dray's engines make it, but for prompt lookup, which wants whole prompts in a step."""
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
    return openvino_genai.ContinuousBatchingPipeline(str(model.folder), scheduler, "CPU", properties)


def answers(made: Any, prompts: list[list[int]], guesses: int, tokens: int) -> tuple[list[list[int]], int, float]:
    """The completions of all prompts at a time, the steps that they took, and tokens a second. guesses: a step."""
    import openvino
    import openvino_genai

    handles = []
    for number, ids in enumerate(prompts):
        config = openvino_genai.GenerationConfig()
        config.apply_chat_template = False
        config.do_sample = False
        config.max_new_tokens = tokens
        if guesses:
            config.num_assistant_tokens, config.max_ngram_size = guesses, _NGRAM
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


def compare(args: argparse.Namespace) -> str:
    model = open_model(ModelSettings(), default_models_dir())
    render = Prompts(model).render
    cores = len(os.sched_getaffinity(0))
    plain, guessing = pipeline(model, cores, lookup=False), pipeline(model, cores, lookup=True)
    rows = []
    for streams in args.streams:
        texts = [f"What is {345 + number} times {678 + number}?" for number in range(streams)]
        prompts = [render(Question((Turn("user", text),), Sampling(1))).ids for text in texts]
        right, steps, _ = answers(plain, prompts, 0, args.tokens)
        rates: defaultdict[int, list[float]] = defaultdict(list)
        taken, same = {0: steps}, {0: True}
        for _ in range(args.rounds):
            rates[0].append(answers(plain, prompts, 0, args.tokens)[2])
            for guesses in args.guesses:
                said, taken[guesses], rate = answers(guessing, prompts, guesses, args.tokens)
                same[guesses] = said == right
                rates[guesses].append(rate)
        for guesses, found in rates.items():
            ratio = median(one / other for one, other in zip(found, rates[0], strict=True))
            name = f"lookup, {guesses} tokens" if guesses else "plain"
            told = "yes" if same[guesses] else "no"
            rows.append([str(streams), name, str(taken[guesses]), f"{median(found):.0f}", f"{ratio:.2f}", told])
    heads = ["streams", "decoding", "steps", "tokens/s", "over plain", "same answers"]
    return report(f"Prompt lookup, {model.name}", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--guesses", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=300)
    print(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
