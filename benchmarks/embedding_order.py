"""Embeds texts in batches of similar lengths, as Dray does, and in batches of the order in which they came.

Both ways run in turn in one process over one compiled model, each beginning every second round, so that a machine that
changes its speed changes both. Counted are seconds of CPU, because a machine may have other work. Lengths are
log-normal, as those of passages are, and cut to the model's context. Random weights are as fast as real ones.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from statistics import median

import numpy as np

from benchmarks.service import report
from cluster.models.folder import open_model
from cluster.settings import ModelSettings
from deployments.common.messages import EncoderInput
from deployments.engine.encoder.batches import BATCH_SIZE, EncoderBatches
from deployments.engine.encoder.model import EncoderModel

_MEDIAN_TOKENS, _SIGMA = 60, 0.8


def texts(count: int, longest: int, seed: int) -> list[EncoderInput]:
    """Token ids at random: a model's time does not depend on which they are."""
    chance = Random(seed)
    lengths = [min(longest, max(3, round(_MEDIAN_TOKENS * chance.lognormvariate(0, _SIGMA)))) for _ in range(count)]
    return [EncoderInput([chance.randrange(1000, 20_000) for _ in range(length)]) for length in lengths]


def as_they_came(model: EncoderModel, inputs: Sequence[EncoderInput]) -> list[bytes]:
    """In batches of the same size, each padded to its longest text."""
    rows: list[bytes] = []
    for start in range(0, len(inputs), BATCH_SIZE):
        rows += [row.astype("<f4").tobytes() for row in model.run(inputs[start : start + BATCH_SIZE])]
    return rows


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def compare(folder: str, count: int, rounds: int, cores: int) -> list[list[str]]:
    """A row for each way: texts and tokens in a second of CPU, and the ratio to the order in which texts came."""
    cpus = sorted(os.sched_getaffinity(0))[:cores]
    os.sched_setaffinity(0, cpus)
    opened = open_model(ModelSettings(source=folder, task="embed"), Path(folder))
    model = EncoderModel(opened, len(cpus))
    batches = EncoderBatches(model)
    inputs = texts(count, opened.context_tokens, 1)
    few = inputs[: 4 * BATCH_SIZE]
    came, by_length = as_they_came(model, few), asyncio.run(batches.run(few))  # warms up too
    first, second = (np.frombuffer(b"".join(rows), np.float32) for rows in (came, by_length))
    assert np.allclose(first, second, atol=0.05), "both ways give the same vectors"
    ways: list[tuple[str, Callable[[], object]]] = [
        ("as they came", lambda: as_they_came(model, inputs)),
        ("by length", lambda: asyncio.run(batches.run(inputs))),
    ]
    seconds: dict[str, list[float]] = {name: [] for name, _ in ways}
    for number in range(rounds):
        for name, way in ways if number % 2 else ways[::-1]:
            seconds[name].append(_seconds(way))
    unsorted, tokens = seconds[ways[0][0]], sum(len(text.ids) for text in inputs)
    rows = []
    for name, each in seconds.items():
        ratio = median(one / other for one, other in zip(unsorted, each, strict=True))
        speed = median(each)
        rows.append([name, f"{count / speed:.0f}", f"{tokens / speed:.0f}", f"{ratio:.2f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of an embedding model")
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cores", type=int, default=2)
    args = parser.parse_args()
    heads = ["batches", "texts/s of CPU", "tokens/s of CPU", "ratio"]
    rows = compare(args.model, args.texts, args.rounds, args.cores)
    print(report(f"Embedding {args.texts} texts in order of length, {args.cores} cores", heads, rows))


if __name__ == "__main__":
    main()
