"""Measures an engine's step time by the step's content: decoding sequences, their context, and prompt tokens.

`dray plan` predicts a service's times from it. The program steps an engine itself, on the cores of a lease, and prints
one line of JSON for each kind of step.
"""

import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import msgspec

from cluster.cores import pin_process
from cluster.models.folder import open_model
from cluster.plan.profile import MeasuredStep, ProfiledEngine, ProfileRequest
from cluster.settings import ModelSettings
from deployments.common.messages import Add, Cancel, EngineRequest, Sampling
from deployments.engine.engine import Engine
from deployments.engine.model import config_for, release_weights

_SHORT_CONTEXT = 64
_LONG_CONTEXT = 512
_BATCHES = (1, 2, 4, 8, 16, 32)
_LONG_CONTEXT_BATCHES = (1, 4)
_PREFILLS = (8, 16, 32, 64, 128, 256, 512)
_MIXED_PREFILLS = (32, 128, 256)
"""Prompt tokens in a step that also decodes."""
_MIN_STEPS = 12
_MIN_PROMPTS = 3
_MIN_SECONDS = 0.3
"""Each kind of step is repeated until it has both this number of samples and this duration."""
_UNLIMITED_TOKENS = 4096
_UNLIMITED_SLOWDOWN = 1e9


class Stepper:
    """Steps an engine and knows which sequences are in it."""

    def __init__(self, engine: Engine, vocabulary: int, max_step_tokens: int) -> None:
        """vocabulary: number of token ids to draw prompts from. max_step_tokens: maximum tokens in one step."""
        self._engine, self._vocabulary, self._max_step_tokens = engine, vocabulary, max_step_tokens
        self._random = random.Random(0)
        self._last_number = 0
        self._contexts: dict[int, int] = {}

    def points(self, batches: tuple[int, ...]) -> Iterator[MeasuredStep]:
        """Measures every kind of step several times."""
        for size in (size for size in _PREFILLS if size <= self._max_step_tokens):
            yield self._prefill(size)
        for batch in batches:
            self._start(batch, _SHORT_CONTEXT)
            yield self._decode()
            for size in (size for size in _MIXED_PREFILLS if size + batch <= self._max_step_tokens):
                yield self._prefill(size)
            self._end()
        yield from self._long_prompt()
        for batch in (batch for batch in _LONG_CONTEXT_BATCHES if batch <= max(batches)):
            self._start(batch, _LONG_CONTEXT)
            yield self._decode()
            self._end()

    def _add(self, length: int, tokens: int) -> int:
        self._last_number += 1
        # Random, so that the prefix cache finds nothing.
        prompt = [self._random.randrange(self._vocabulary) for _ in range(length)]
        self._engine.add(Add(self._last_number, EngineRequest(prompt, Sampling(tokens, ignore_eos=True))))
        return self._last_number

    def _step(self) -> tuple[float, set[int]]:
        """Runs one step. Returns its seconds, and the streams that got a token."""
        started = time.perf_counter()
        streams = self._engine.step().streams
        seconds = time.perf_counter() - started
        for number in streams:
            if number in self._contexts:
                self._contexts[number] += 1
        return seconds, set(streams)

    def _start(self, batch: int, context: int) -> None:
        waiting = {self._add(context, _UNLIMITED_TOKENS) for _ in range(batch)}
        decoding: set[int] = set()
        while not waiting <= decoding:
            decoding |= self._step()[1]
            for number in decoding - self._contexts.keys():
                self._contexts[number] = context + 1
        self._step()

    def _end(self) -> None:
        for number in self._contexts:
            self._engine.cancel(Cancel(number))
        self._contexts.clear()

    def _decode(self) -> MeasuredStep:
        context_before, times = sum(self._contexts.values()), list[float]()
        while len(times) < _MIN_STEPS or sum(times) < _MIN_SECONDS:
            times.append(self._step()[0])
        context = (context_before + sum(self._contexts.values())) // 2
        return MeasuredStep(len(self._contexts), context, 0, 0, median(times))

    def _prefill(self, size: int) -> MeasuredStep:
        """A prompt of this size, beside the sequences that decode now."""
        context_before, times = sum(self._contexts.values()), list[float]()
        while len(times) < _MIN_PROMPTS or sum(times) < _MIN_SECONDS:
            number = self._add(size, 1)
            seconds, streams = self._step()
            assert number in streams
            times.append(seconds)
        context = (context_before + sum(self._contexts.values())) // 2
        return MeasuredStep(len(self._contexts), context, size, size * (size - 1) // 2, median(times))

    def _long_prompt(self) -> Iterator[MeasuredStep]:
        """A prompt that takes several steps, each with more context before it."""
        size = min(self._max_step_tokens, _LONG_CONTEXT)
        number, behind = self._add(3 * size, 1), 0
        streams: set[int] = set()
        while number not in streams:
            seconds, streams = self._step()
            yield MeasuredStep(0, 0, size, size * behind + size * (size - 1) // 2, seconds)
            behind += size


def main() -> None:
    """argv[1]: a ProfileRequest as JSON."""
    request = msgspec.json.decode(sys.argv[1], type=ProfileRequest)
    pin_process(request.cpus)  # with the threads that importing numpy has started
    model = open_model(ModelSettings.model_validate(request.model), Path(request.models_dir))
    config = config_for(model, request.cpus, data_dir=Path(request.data_dir))
    # Each size is measured as it is, without regard to the streams beside it, and without guesses; with a place for a
    # prompt beside a full batch.
    unlimited = {"decode_slowdown": _UNLIMITED_SLOWDOWN, "guess_tokens": False, "max_num_seqs": config.max_num_seqs + 1}
    engine = Engine(msgspec.structs.replace(config, **unlimited))
    engine.warm_up()
    release_weights(config.model_dir)
    batches = tuple(batch for batch in _BATCHES if batch <= config.max_num_seqs)
    encode = msgspec.json.encode
    header = ProfiledEngine(
        model.name,
        len(request.cpus),
        model.weights_bytes,
        config.kv_cache_mb,
        engine.kv_tokens,
        config.max_num_seqs,
        config.max_num_batched_tokens,
        config.decode_slowdown,
    )
    print(encode(header).decode(), flush=True)
    vocabulary = int(json.loads((model.folder / "config.json").read_text())["vocab_size"])
    for point in Stepper(engine, vocabulary, config.max_num_batched_tokens).points(batches):
        print(encode(point).decode(), flush=True)


if __name__ == "__main__":
    main()
