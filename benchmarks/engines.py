"""Dray's engine beside OpenVINO GenAI's pipeline, stepped in turn in one process: same model, cores and properties.

Decoding at several batch sizes, a prompt alone, and running streams while a long prompt comes in. `median (ratio)`: the
ratio is the median of those of the rounds, so that a machine that changes its speed changes both sides. Guesses are off
but where they are named, since prompts here are random tokens.
"""

import argparse
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Protocol

import msgspec

from benchmarks.pipelines import Pipeline
from benchmarks.service import report
from cluster.models.folder import ServedModel, open_model
from cluster.settings import BUNDLED, ModelSettings, default_models_dir
from deployments.common.messages import Add, Cancel, EngineRequest, Sampling
from deployments.engine.engine import Engine
from deployments.engine.model import config_for

_VOCABULARY = 2000
_PROMPT = 32
_LONG_PROMPT = 2000
_RUNNING = 8


class Stepped(Protocol):
    """What is compared."""

    @property
    def busy(self) -> bool: ...
    def add(self, number: int, prompt: list[int], tokens: int) -> None: ...
    def step(self) -> dict[int, list[int]]: ...
    def end(self) -> None: ...


class Dray:
    """Dray's engine."""

    def __init__(self, model: ServedModel, *, guess_tokens: bool = False) -> None:
        config = config_for(model, tuple(sorted(os.sched_getaffinity(0))))
        self._engine = Engine(msgspec.structs.replace(config, guess_tokens=guess_tokens))
        self._engine.warm_up()
        self._numbers: set[int] = set()

    @property
    def busy(self) -> bool:
        return self._engine.busy

    def add(self, number: int, prompt: list[int], tokens: int) -> None:
        self._numbers.add(number)
        self._engine.add(Add(number, EngineRequest(prompt, Sampling(tokens, ignore_eos=True))))

    def step(self) -> dict[int, list[int]]:
        return {number: batch.ids for number, batch in self._engine.step().streams.items() if batch.ids}

    def end(self) -> None:
        for number in self._numbers:
            self._engine.cancel(Cancel(number))
        self._numbers.clear()


def prompt(length: int) -> list[int]:
    return [random.randrange(10, _VOCABULARY) for _ in range(length)]


def start(engine: Stepped, streams: int) -> None:
    """Streams that all decode."""
    waiting = set(range(streams))
    for number in waiting:
        engine.add(number, prompt(_PROMPT), 4000)
    while waiting:
        waiting -= engine.step().keys()
    engine.step()


def decoding(streams: int, steps: int) -> Callable[[Stepped], dict[str, float]]:
    """Tokens/s of streams that decode."""

    def measure(engine: Stepped) -> dict[str, float]:
        start(engine, streams)
        times = []
        for _ in range(steps):
            began = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - began)
        engine.end()
        return {f"{streams} streams, tokens/s": streams / median(times)}

    return measure


def prefill(length: int) -> Callable[[Stepped], dict[str, float]]:
    """Seconds to the first token of a prompt alone."""

    def measure(engine: Stepped) -> dict[str, float]:
        engine.add(0, prompt(length), 1)
        began = time.perf_counter()
        while engine.busy:
            engine.step()
        seconds = time.perf_counter() - began
        engine.end()
        return {f"prompt of {length}, tokens/s": length / seconds}

    return measure


def interruption(engine: Stepped) -> dict[str, float]:
    """Running streams while a long prompt comes in: their longest step, and the prompt's first token."""
    start(engine, _RUNNING)
    engine.add(_RUNNING, prompt(_LONG_PROMPT), 4)
    began, longest, token_at = time.perf_counter(), 0.0, time.perf_counter()
    while True:
        streams = engine.step()
        now = time.perf_counter()
        if 0 in streams:
            longest, token_at = max(longest, now - token_at), now
        if _RUNNING in streams:
            break
    engine.end()
    return {
        f"longest gap of {_RUNNING} streams beside a prompt of {_LONG_PROMPT}, ms": longest * 1e3,
        f"its first token beside {_RUNNING} streams, ms": (now - began) * 1e3,
    }


def compare(args: argparse.Namespace) -> str:
    model = open_model(ModelSettings(source=args.model), default_models_dir())
    engines: dict[str, Stepped] = {"Dray": Dray(model), "pipeline": Pipeline(model)}
    measures = [*(decoding(streams, args.steps) for streams in args.streams), prefill(512), interruption]
    found: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for round_ in range(args.rounds + 1):
        for measure in measures:
            for name, engine in sorted(engines.items(), reverse=bool(round_ % 2)):
                for what, value in measure(engine).items():
                    if round_:  # the first one warms up
                        found[what][name].append(value)
    rows = []
    for what, values in found.items():
        ratios = [ours / theirs for ours, theirs in zip(values["Dray"], values["pipeline"], strict=True)]
        rows.append(
            [what, f"{median(values['Dray']):.1f}", f"{median(values['pipeline']):.1f}", f"{median(ratios):.2f}"]
        )
    return report(f"Dray's engine and OpenVINO GenAI's pipeline, {model.name}", ["", "Dray", "pipeline", "ratio"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    print(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
