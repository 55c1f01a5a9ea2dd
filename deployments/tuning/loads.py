"""The loads that variants are measured under, as forward passes without scheduling or sampling."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import truediv
from statistics import median

from cluster.tuning.choice import LoadTimes
from cluster.tuning.variants import Variant
from deployments.common.messages import EngineConfig
from deployments.common.prefix import BLOCK_TOKENS
from deployments.engine.model import Chunk, PagedModel, with_variant

_CONTEXT = 64
"""Tokens before the one that a stream decodes, again and again at the same place."""
_STARTED_TOGETHER = 8
"""Streams whose prompts one forward pass computes."""
_BLOCKS = _CONTEXT // BLOCK_TOKENS + 1
"""KV blocks of a stream."""
_MIN_SECONDS = 0.3
"""Of all measurements of a load: short ones are repeated more often."""
_MIN_ROUNDS = 1
"""Of a load, however long it takes."""


_ALONE_SECONDS = 0.5
"""Of a load at a first start."""


class LoadedVariant:
    """A model compiled as one variant, with the KV cache of a number of streams."""

    def __init__(self, config: EngineConfig, variant: Variant) -> None:
        """Raises RuntimeError, OSError, ValueError or KeyError for a model that cannot be loaded."""
        self._model = PagedModel(with_variant(config, variant))
        self._blocks: int = self._model.blocks
        self._random = random.Random(0)
        self._streams = 0

    @property
    def multiplications(self) -> str:
        """How the graph multiplies, after a forward pass."""
        return self._model.multiplications

    @property
    def max_streams(self) -> int:
        """How many streams the KV cache holds."""
        return max(1, self._blocks // _BLOCKS)

    @property
    def max_prompt(self) -> int:
        """The longest prompt that the KV cache holds."""
        return self._blocks * BLOCK_TOKENS

    def start(self, streams: int) -> None:
        """Computes the streams' prompts."""
        self._streams = streams
        for first in range(0, streams, _STARTED_TOGETHER):
            started = range(first, min(first + _STARTED_TOGETHER, streams))
            self._model.forward([Chunk(self._tokens(_CONTEXT), 0, _table(stream), 1) for stream in started])

    def decode(self, streams: int | None = None) -> float:
        """Seconds in which each stream gets a token. streams: any that need not be started, as their KV cache may hold
        anything; None: those that were."""
        chunks = [Chunk(self._tokens(1), _CONTEXT, _table(stream), 1) for stream in range(streams or self._streams)]
        return self._timed([chunks])

    def prompt(self, length: int, step_tokens: int) -> float:
        """Seconds of a prompt that is computed in steps of this size. It overwrites the streams."""
        tokens, table = self._tokens(length), range(-(-length // BLOCK_TOKENS))
        pasts = range(0, length, step_tokens)
        return self._timed(
            [[Chunk(tokens[past : past + step_tokens], past, table, int(past == pasts[-1]))] for past in pasts]
        )

    def _timed(self, steps: Sequence[Sequence[Chunk]]) -> float:
        started = time.perf_counter()
        for chunks in steps:
            self._model.forward(chunks)
        return time.perf_counter() - started

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(self._model.vocabulary) for _ in range(count)]


def _table(stream: int) -> range:
    return range(stream * _BLOCKS, (stream + 1) * _BLOCKS)


def compare(
    exact: LoadedVariant, other: LoadedVariant, streams: Sequence[int], prompt_tokens: int, seconds: float
) -> Iterator[LoadTimes]:
    """The times of both under each load. seconds: of all loads together, if they are not too long for that."""
    each = seconds / (len(streams) + 1)
    for count in streams:
        exact.start(count)
        other.start(count)
        yield _load(count, count, in_turn((exact.decode, other.decode), _MIN_ROUNDS, each))
    prompts = [partial(side.prompt, prompt_tokens, prompt_tokens) for side in (exact, other)]
    yield _load(0, prompt_tokens, in_turn(prompts, _MIN_ROUNDS, each))


def _load(streams: int, tokens: int, times: Sequence[Sequence[float]]) -> LoadTimes:
    exact, other = times
    return LoadTimes(streams, tokens, median(exact), median(other), median(map(truediv, exact, other)))


def least_seconds(loaded: LoadedVariant, streams: Sequence[int], prompt_tokens: int) -> tuple[float, ...]:
    """The least seconds of each load, repeated for a moment: what else the machine does only adds to them."""
    loaded.decode(1)  # the first inference repacks the weights
    loads = [
        *(partial(loaded.decode, count) for count in streams),
        partial(loaded.prompt, prompt_tokens, prompt_tokens),
    ]
    return tuple(min(_repeated(load)) for load in loads)


def per_second(load: Callable[[], float], tokens: int, seconds: float) -> float:
    """Tokens a second of a load that is repeated for so long. tokens: of one repetition."""
    began, repetitions = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        load()
        repetitions += 1
    return tokens * repetitions / passed


def _repeated(load: Callable[[], float]) -> Iterator[float]:
    end = time.perf_counter() + _ALONE_SECONDS
    while True:
        yield load()
        if time.perf_counter() > end:
            return


def in_turn(
    measurements: Sequence[Callable[[], float]], rounds: int, seconds: float = _MIN_SECONDS
) -> list[list[float]]:
    """The times of each measurement, by turn.

    They take turns, in alternating order, so that what else the machine does in the meantime slows them alike. Each
    runs once more before, untimed. rounds, seconds: at least as many.
    """
    for measure in measurements:
        measure()
    times: list[list[float]] = [[] for _ in measurements]
    order = list(enumerate(measurements))
    while len(times[0]) < rounds or sum(map(sum, times)) < seconds:
        for index, measure in order:
            times[index].append(measure())
        order.reverse()
    return times
