"""What a batch in an engine costs people's time to first token, with and without its steps giving way to a question.

One engine, without a service. A question comes at any moment after the answer before, while as many streams of a batch
run as people leave it; the cases take turns, question by question, so that a neighbour's load meets all of them.
"""

import argparse
import os
import random
import time
from collections.abc import Callable
from itertools import count
from statistics import median, quantiles

from benchmarks.batches import question
from benchmarks.service import report
from cluster.models.folder import ServedModel, open_model
from cluster.settings import BUNDLED, ModelSettings, default_models_dir
from deployments.common.messages import Add, Cancel, EngineRequest, Sampling
from deployments.common.types import GenerationRequest, Message
from deployments.engine.engine import Engine
from deployments.engine.model import config_for
from deployments.engine.protocol import nobody
from deployments.generation.prompts import PromptRenderer
from deployments.routing.division import BATCH_DIVISOR

_ALONE, _WAITS, _GIVES_WAY = "without a batch", "beside a batch", "beside a batch that gives way"


class _Load:
    """An engine with people, one after the other, and a batch."""

    def __init__(self, model: ServedModel, args: argparse.Namespace) -> None:
        config = config_for(model, tuple(sorted(os.sched_getaffinity(0)))[:1])
        os.sched_setaffinity(0, config.cpus)
        self._engine, self._render = Engine(config), PromptRenderer(model).render
        self._engine.warm_up()
        self._streams = model.settings.max_num_seqs // BATCH_DIVISOR
        self._args = args
        self._numbers = count(1)
        self._batch: set[int] = set()

    def ask(self, case: str) -> float:
        """The time to first token of one question, in seconds."""
        self._set_batch(case != _ALONE)
        arrival = time.perf_counter() + random.uniform(0.5, 0.5 + self._args.pause)

        def came() -> bool:
            return time.perf_counter() >= arrival

        while not came():
            if self._batch:
                self._step(came if case == _GIVES_WAY else nobody)
            else:
                time.sleep(0.001)
        number, first = self._add(self._args.words, priority=0), 0.0
        while number is not None:
            for stream, ids in self._step(came).items():
                if stream == number and ids and not first:
                    first = time.perf_counter()
                if stream == -number:
                    return first - arrival
        raise AssertionError

    def _step(self, people_wait: Callable[[], bool]) -> dict[int, list[int]]:
        """What each stream got; an ended one is also there with its number negated."""
        got: dict[int, list[int]] = {}
        for number, batch in self._engine.step(people_wait).streams.items():
            got[number] = batch.ids
            if batch.finish_reason:
                got[-number] = []
                if number in self._batch:
                    self._batch.remove(number)
                    self._batch.add(self._add(0, priority=1))
        return got

    def _set_batch(self, running: bool) -> None:
        if not running:
            for number in self._batch:
                self._engine.cancel(Cancel(number))
            self._batch.clear()
            return
        while len(self._batch) < self._streams:
            self._batch.add(self._add(0, priority=1))

    def _add(self, words: int, *, priority: int) -> int:
        number, sampling = next(self._numbers), Sampling(self._args.tokens, ignore_eos=True)
        prompt = self._render(GenerationRequest((Message("user", question(words)),), sampling)).ids
        self._engine.add(Add(number, EngineRequest(prompt, sampling, priority=priority)))
        return number


def measure(args: argparse.Namespace) -> str:
    load = _Load(open_model(ModelSettings(source=args.model), default_models_dir()), args)
    cases: dict[str, list[float]] = {_ALONE: [], _WAITS: [], _GIVES_WAY: []}
    for case in cases:
        load.ask(case)
    deadline = time.monotonic() + args.seconds
    while time.monotonic() < deadline:
        for case, times in cases.items():
            times.append(load.ask(case))
    rows, alone = [], cases[_ALONE]
    for case, times in cases.items():
        marks = [(median(of), quantiles(of, n=20, method="inclusive")[-1]) for of in (times, alone)]
        ratios = [f"{now / before:.2f}" for now, before in zip(*marks, strict=True)]
        rows.append([case, f"{1000 * marks[0][0]:.0f}", f"{1000 * marks[0][1]:.0f}", *ratios])
    title = f"People's first token in one engine, {args.words} words, {len(alone)} questions of each"
    return report(title, ["", "p50, ms", "p95, ms", "p50 ratio", "p95 ratio"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--words", type=int, default=150, help="of a text before each question of people")
    parser.add_argument("--tokens", type=int, default=16, help="per answer")
    parser.add_argument("--seconds", type=float, default=240, help="of all cases together")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds, at most, before a question")
    print(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
