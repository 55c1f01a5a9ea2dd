"""What choosing the next tokens costs, compared with a plain argmax over the same logits.

Two vocabularies: that of DeepSeek-R1-Distill-Qwen, and that of the bundled model. The logits are random: `peaked` ones
have a few likely tokens, as a model's mostly do; `flat` ones have none, which is the worst case for top-p.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy
from numpy.typing import NDArray

from benchmarks.service import report
from deployments.common.messages import Sampling
from deployments.engine.sampler import Row, sample
from deployments.engine.sampling_state import SamplingState

_VOCABULARIES = {"152k": 151_936, "bundled": 2050}
_PROMPT = 512
_KINDS = {
    "greedy": Sampling(4096),
    "temperature 0.6, top_p 0.95": Sampling(4096, 0.6, 0.95, seed=1),
    "temperature 1": Sampling(4096, 1.0, seed=1),
    "temperature 0.7, top_k 20, top_p 0.8": Sampling(4096, 0.7, 0.8, seed=1, top_k=20),
    "greedy, penalties": Sampling(4096, repetition_penalty=1.1, frequency_penalty=0.5),
    "greedy, top_logprobs 20": Sampling(4096, top_logprobs=20),
}


def random_logits(streams: int, vocabulary: int, *, peaked: bool) -> NDArray[numpy.float32]:
    """Logits of a normal distribution; the peaked ones with ten likely tokens."""
    rng = numpy.random.default_rng(0)
    logits = rng.normal(0, 2.5, (streams, vocabulary)).astype(numpy.float32)
    if peaked:
        logits[:, rng.integers(0, vocabulary, 10)] += numpy.linspace(8, 16, 10, dtype=numpy.float32)
    return logits


def seconds(work: Callable[[NDArray[numpy.float32]], object], logits: NDArray[numpy.float32], rounds: int) -> float:
    """Median seconds of a call, each with its own copy of the logits."""
    times = []
    for _ in range(rounds):
        copy = logits.copy()
        began = time.perf_counter()
        work(copy)
        times.append(time.perf_counter() - began)
    return median(times)


def measure(args: argparse.Namespace) -> str:
    rows, prompt = [], list(range(_PROMPT))
    for name, vocabulary in _VOCABULARIES.items():
        for shape in ("peaked", "flat"):
            logits = random_logits(args.streams, vocabulary, peaked=shape == "peaked")
            plain = seconds(lambda copy: copy.argmax(axis=1), logits, args.rounds)
            for kind, sampling in _KINDS.items():
                states = [SamplingState(sampling, prompt, _PROMPT // 2, {1}, vocabulary) for _ in range(args.streams)]
                streams = [Row(state) for state in states]
                took = seconds(partial(sample, rows=streams), logits, args.rounds)
                rows.append([name, shape, kind, f"{took * 1e3:.2f}", f"{took / plain:.1f}"])
    heads = ["vocabulary", "logits", "sampling", "ms a step", "of an argmax"]
    return report(f"Choosing the next tokens, {args.streams} streams", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    print(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
