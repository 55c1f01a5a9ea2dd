"""How long an engine's step takes, by what is in it: how many streams decode, behind how long a context, and how many
prompt tokens are computed beside them. `dray plan` foretells a service's times from it.

It steps the engine itself, on the cores of a lease, and prints a line of JSON for each kind of step.
"""

import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import msgspec

from cluster.models.folder import open_model
from cluster.plan.profile import Header, Point, ProfileRequest
from cluster.settings import ModelSettings
from deployments.common.messages import Add, Cancel, EngineRequest, Sampling
from deployments.engine.core import Engine, give_back_weights
from deployments.engine.process import config_for

_SHORT = 64
_LONG = 512
_BATCHES = (1, 2, 4, 8, 16, 32)
_LONG_BATCHES = (1, 4)
_PREFILLS = (8, 16, 32, 64, 128, 256, 512)
_BESIDE = (32, 128, 256)
"""Prompt tokens computed in a step beside streams that decode."""
_STEPS = 12
_PROMPTS = 3
_LEAST_S = 0.3
"""Each kind of step is repeated at least so often, and for so long: of fast ones there are more."""
_FOREVER = 4096


class Stepper:
    """Steps an engine whose content it knows."""

    def __init__(self, engine: Engine, vocabulary: int, most: int) -> None:
        """vocabulary: ids that prompts are drawn from. most: tokens in one step."""
        self._engine, self._vocabulary, self._most = engine, vocabulary, most
        self._chance = random.Random(0)
        self._number = 0
        self._contexts: dict[int, int] = {}

    def points(self, batches: tuple[int, ...]) -> Iterator[Point]:
        """All kinds of steps, each measured several times."""
        for size in (one for one in _PREFILLS if one <= self._most):
            yield self._prefill(size)
        for batch in batches:
            self._begin(batch, _SHORT)
            yield self._decode()
            for size in (one for one in _BESIDE if one + batch <= self._most):
                yield self._prefill(size)
            self._end()
        yield from self._long_prompt()
        for batch in (one for one in _LONG_BATCHES if one <= max(batches)):
            self._begin(batch, _LONG)
            yield self._decode()
            self._end()

    def _add(self, length: int, tokens: int) -> int:
        self._number += 1
        # Drawn, so that no prefix is found in the cache.
        prompt = [self._chance.randrange(self._vocabulary) for _ in range(length)]
        self._engine.add(Add(self._number, EngineRequest(prompt, Sampling(tokens, ignore_eos=True))))
        return self._number

    def _step(self) -> tuple[float, set[int]]:
        """One step: seconds, and the streams that it made a token for."""
        began = time.perf_counter()
        made = self._engine.step().streams
        seconds = time.perf_counter() - began
        for number in made:
            if number in self._contexts:
                self._contexts[number] += 1
        return seconds, set(made)

    def _begin(self, batch: int, context: int) -> None:
        waiting = {self._add(context, _FOREVER) for _ in range(batch)}
        begun: set[int] = set()
        while not waiting <= begun:
            begun |= self._step()[1]
            for number in begun - self._contexts.keys():
                self._contexts[number] = context + 1
        self._step()

    def _end(self) -> None:
        for number in self._contexts:
            self._engine.cancel(Cancel(number))
        self._contexts.clear()

    def _decode(self) -> Point:
        before, seen = sum(self._contexts.values()), list[float]()
        while len(seen) < _STEPS or sum(seen) < _LEAST_S:
            seen.append(self._step()[0])
        context = (before + sum(self._contexts.values())) // 2
        return Point(len(self._contexts), context, 0, 0, median(seen))

    def _prefill(self, size: int) -> Point:
        """A prompt beside the streams that decode now, or alone."""
        before, seen = sum(self._contexts.values()), list[float]()
        while len(seen) < _PROMPTS or sum(seen) < _LEAST_S:
            number = self._add(size, 1)
            seconds, made = self._step()
            assert number in made
            seen.append(seconds)
        context = (before + sum(self._contexts.values())) // 2
        return Point(len(self._contexts), context, size, size * (size - 1) // 2, median(seen))

    def _long_prompt(self) -> Iterator[Point]:
        """A prompt that takes several steps: each has more of it behind itself."""
        size = min(self._most, _LONG)
        number, behind = self._add(3 * size, 1), 0
        made: set[int] = set()
        while number not in made:
            seconds, made = self._step()
            yield Point(0, 0, size, size * behind + size * (size - 1) // 2, seconds)
            behind += size


def main() -> None:
    """argv[1]: an `Asked` as JSON."""
    asked = msgspec.json.decode(sys.argv[1], type=ProfileRequest)
    os.sched_setaffinity(0, asked.cpus)
    model = open_model(ModelSettings.model_validate(asked.model), Path(asked.models_dir))
    config = config_for(model, asked.cpus)
    engine = Engine(config)
    engine.warm_up()
    give_back_weights(config.model_dir)
    batches = tuple(one for one in _BATCHES if one <= config.max_num_seqs)
    encode = msgspec.json.encode
    header = Header(
        model.name,
        len(asked.cpus),
        model.weights_bytes,
        config.kv_cache_mb,
        engine.kv_tokens,
        config.max_num_seqs,
        config.max_num_batched_tokens,
    )
    print(encode(header).decode(), flush=True)
    vocabulary = int(json.loads((model.folder / "config.json").read_text())["vocab_size"])
    for point in Stepper(engine, vocabulary, config.max_num_batched_tokens).points(batches):
        print(encode(point).decode(), flush=True)


if __name__ == "__main__":
    main()
