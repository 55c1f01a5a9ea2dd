"""A simulated replica: continuous batching, one step at a time.

As in the engine, every decoding stream gets a token in each step, and prompts get, in order of arrival, as many tokens
as keep the step within its limits. Consecutive steps that only decode, and in which no stream ends, are simulated
together.
"""

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from cluster.plan.load import TraceRequest
from cluster.plan.profile import ProfiledEngine, StepTimes

_WELL_LOADED_DIVISOR = 4
"""An engine is well loaded from a quarter of its sequences on (deployments/engine/replica.py)."""
_BLOCK_TOKENS = 32
"""Tokens that the prefix cache keeps or drops together."""


@dataclass(slots=True, eq=False)
class SimulatedSequence:
    """A request in an engine. first, last: when these tokens were generated, on the simulated clock; 0 before."""

    request: TraceRequest
    begun: simpy.Event
    done: simpy.Event
    first: float = 0.0
    last: float = 0.0
    computed: int = 0
    """Prompt tokens that are computed, or were found in the prefix cache."""
    generated: int = 0
    """Output tokens generated."""

    @property
    def left(self) -> int:
        """Output tokens still to be generated."""
        return self.request.output - self.generated

    @property
    def pending_tokens(self) -> int:
        """Tokens still to be computed: prompt and output."""
        return self.request.prompt - self.computed + self.left


@dataclass(slots=True)
class SimulatedPrefixCache:
    """Which starts of prompts are cached, by conversation, question or system prompt; the least recently used go first.

    most: its size in tokens. held: cached tokens by name.
    """

    max_tokens: int
    held: OrderedDict[str, int] = field(default_factory=OrderedDict)
    evicted_before: float = 0.0
    """Until when the starts were last used that it has dropped, on the simulated clock."""
    _tokens: int = 0
    _used_at: dict[str, float] = field(default_factory=dict)

    def cached_tokens(self, request: TraceRequest) -> int:
        """Cached tokens at the start of a prompt, in whole blocks. The last token is always computed."""
        cached = max((min(limit, self.held.get(name, 0)) for name, limit in _prefixes(request)), default=0)
        return min(cached, request.prompt - 1) // _BLOCK_TOKENS * _BLOCK_TOKENS

    def add(self, request: TraceRequest, tokens: int, now: float) -> None:
        """Caches the first `tokens` tokens of the request's prompt and output."""
        for name, limit in _prefixes(request):
            self._tokens += min(tokens, limit) - self.held.get(name, 0)
            self.held[name] = min(tokens, limit)
            self.held.move_to_end(name)
            self._used_at[name] = now
        while self._tokens > self.max_tokens and self.held:
            dropped, dropped_tokens = self.held.popitem(last=False)
            self._tokens -= dropped_tokens
            self.evicted_before = self._used_at.pop(dropped)


def _prefixes(request: TraceRequest) -> list[tuple[str, int]]:
    """What the prompt may share its start with, and for how many tokens at most."""
    prefixes = []
    if request.session != "":
        prefixes.append((f"session {request.session}", 1 << 30))
    if request.question != "":
        prefixes.append((f"question {request.question}", request.prompt))
    if request.prefix != "" and request.prefix_tokens:
        prefixes.append((f"prefix {request.prefix}", request.prefix_tokens))
    return prefixes


class SimulatedReplica:
    """One engine. loaded_s, loaded_tokens: seconds of steps while it was well loaded, and tokens computed in them."""

    def __init__(
        self, world: simpy.Environment, engine: ProfiledEngine, times: StepTimes, step_overhead_s: float
    ) -> None:
        """step_overhead_s: between steps, in addition to what was measured on the engine alone."""
        self._world, self._engine, self._times, self._overhead_s = world, engine, times, step_overhead_s
        self._prompts: deque[SimulatedSequence] = deque()
        self._decoding: list[SimulatedSequence] = []
        self._woken = world.event()
        self.prefixes = SimulatedPrefixCache(engine.kv_tokens)
        self._context = 0
        """Tokens of all decoding streams so far."""
        self._left = 0
        """Tokens that they still have to generate."""
        self._decode_run = (0.0, 0.0, 0)
        """Decode steps being simulated together: their start, their seconds, and the tokens they generate."""
        self.loaded_s = 0.0
        self.loaded_tokens = 0
        world.process(self._run())

    @property
    def running(self) -> int:
        """Sequences in the engine."""
        return len(self._decoding) + len(self._prompts)

    @property
    def pending_tokens(self) -> int:
        """Tokens still to be computed. Of decode steps simulated together, the steps that are over count as done."""
        start, seconds, tokens = self._decode_run
        generated = tokens * min(1.0, (self._world.now - start) / seconds) if seconds else 0.0
        prompts = sum(sequence.pending_tokens for sequence in self._prompts)
        return prompts + self._left - int(generated)

    def add(self, work: SimulatedSequence) -> None:
        """Adds a request."""
        work.computed = self.prefixes.cached_tokens(work.request)
        self._prompts.append(work)
        if not self._woken.triggered:
            self._woken.succeed()

    def _run(self) -> Generator[simpy.Event, Any, None]:
        while True:
            if not self.running:
                self._woken = self._world.event()
                yield self._woken
            elif self._prompts:
                yield from self._mixed_step()
            else:
                yield from self._decode_steps()

    def _mixed_step(self) -> Generator[simpy.Event, Any, None]:
        """One step with prompt tokens in it."""
        decoding = list(self._decoding)
        chunks, behind = self._prefill_chunks()
        prefill = sum(size for _, size in chunks)
        seconds = self._times.step(len(decoding), self._context, prefill, behind) + self._overhead_s
        self._measure_load(seconds, prefill + len(decoding))
        yield self._world.timeout(seconds)
        for sequence, size in chunks:
            sequence.computed += size
            if sequence.computed == sequence.request.prompt:
                self._prompts.remove(sequence)
                sequence.first = self._world.now
                sequence.begun.succeed()
                self._decoding.append(sequence)
                self._context += sequence.request.prompt
                self._left += sequence.left
                decoding.append(sequence)
        self._generate(decoding, 1)

    def _prefill_chunks(self) -> tuple[list[tuple[SimulatedSequence, int]], int]:
        """The prompts that the next step computes, with the tokens of each; and the tokens before all of these, added
        up."""
        decoding = len(self._decoding)
        left, behind, held = self._prompt_tokens(decoding), 0, self._context + decoding
        chunks: list[tuple[SimulatedSequence, int]] = []
        for sequence in self._prompts:
            size = min(left, sequence.request.prompt - sequence.computed)
            # A prompt without a free sequence, or without room in the KV cache, waits until another request ends.
            full = decoding + len(chunks) >= self._engine.max_num_seqs
            no_room = held + sequence.computed + size > self._engine.kv_tokens and (decoding or chunks)
            if size <= 0 or full or no_room:
                break
            chunks.append((sequence, size))
            behind += size * sequence.computed + size * (size - 1) // 2
            held += sequence.computed + size
            left -= size
        return chunks, behind

    def _prompt_tokens(self, decoding: int) -> int:
        """How many prompt tokens a step may have, so that running streams are not slowed too much."""
        most = self._engine.max_num_batched_tokens - decoding
        if not decoding:
            return most
        allowed = self._engine.decode_slowdown * self._times.step(decoding, self._context)
        sizes = range(2 * _BLOCK_TOKENS, most + 1, _BLOCK_TOKENS)
        # More rows never take less time.
        fitting = bisect_right(sizes, allowed, key=lambda size: self._times.step(decoding, self._context, size))
        return sizes[fitting - 1] if fitting else min(most, _BLOCK_TOKENS)

    def _decode_steps(self) -> Generator[simpy.Event, Any, None]:
        """Decode steps, until a stream ends or a prompt arrives."""
        batch, context = len(self._decoding), self._context
        steps = min(sequence.left for sequence in self._decoding)

        def seconds(count: int) -> float:
            return self._times.decode(batch, context, count) + count * self._overhead_s

        start = self._world.now
        self._woken = self._world.event()
        self._decode_run = (start, seconds(steps), steps * batch)
        all_steps = self._world.timeout(seconds(steps))
        yield all_steps | self._woken
        if not all_steps.processed:
            # The present step is finished first: the fewest steps that take as long as has passed.
            passed, low, high = self._world.now - start, 1, steps
            while low < high:
                middle = (low + high) // 2
                low, high = (middle + 1, high) if seconds(middle) < passed else (low, middle)
            steps = low
            yield self._world.timeout(max(0.0, seconds(steps) - passed))
        self._measure_load(seconds(steps), steps * batch)
        self._decode_run = (0.0, 0.0, 0)
        self._generate(list(self._decoding), steps)

    def _measure_load(self, seconds: float, tokens: int) -> None:
        if self.running >= self._engine.max_num_seqs // _WELL_LOADED_DIVISOR:
            self.loaded_s += seconds
            self.loaded_tokens += tokens

    def _generate(self, sequences: list[SimulatedSequence], tokens: int) -> None:
        """Adds tokens to each sequence; ends those that are complete."""
        for sequence in sequences:
            sequence.generated += tokens
            self._context += tokens
            self._left -= tokens
            if sequence.left <= 0:
                self._context -= sequence.request.prompt + sequence.generated
                sequence.last = self._world.now
                self._decoding.remove(sequence)
                self.prefixes.add(sequence.request, sequence.request.prompt + sequence.generated, self._world.now)
                sequence.done.succeed()
