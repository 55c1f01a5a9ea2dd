"""A replica of the model: continuous batching, a step at a time.

As the engine does it: what decodes gets its token in each step, and what is left of a step's tokens goes to prompts in
the order in which they came. Steps in which nothing but decoding happens, and nothing ends, are taken together.
"""

from collections import OrderedDict, deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from cluster.plan.load import TraceRequest
from cluster.plan.profile import Header, StepTimes

_WELL_LOADED = 4
"""An engine is where it runs one in so many of the sequences that it could (deployments/engine/replica.py)."""
_BLOCK = 32
"""Tokens that the prefix cache holds or forgets together."""


@dataclass(slots=True, eq=False)
class SimulatedSequence:
    """A request in an engine. Times on the model's clock; 0 before."""

    request: TraceRequest
    begun: simpy.Event
    done: simpy.Event
    first: float = 0.0
    last: float = 0.0
    computed: int = 0
    """Of the prompt, what need not be computed any more."""
    made: int = 0

    @property
    def left(self) -> int:
        return self.request.output - self.made

    @property
    def waiting(self) -> int:
        """Tokens that are still to be computed for it."""
        return self.request.prompt - self.computed + self.left


@dataclass(slots=True)
class SimulatedPrefixCache:
    """Which beginnings of prompts are held, by conversation or system prompt; the least used go first."""

    most: int
    held: OrderedDict[str, int] = field(default_factory=OrderedDict)
    _tokens: int = 0

    def found(self, request: TraceRequest) -> int:
        """Tokens of a prompt that need not be computed; its last always is."""
        names = _beginnings(request)
        known = max((min(most, self.held.get(name, 0)) for name, most in names), default=0)
        return min(known, request.prompt - 1) // _BLOCK * _BLOCK

    def add(self, request: TraceRequest, tokens: int) -> None:
        """Notes that so many tokens from its beginning on are held."""
        for name, most in _beginnings(request):
            self._tokens += min(tokens, most) - self.held.get(name, 0)
            self.held[name] = min(tokens, most)
            self.held.move_to_end(name)
        while self._tokens > self.most and self.held:
            self._tokens -= self.held.popitem(last=False)[1]


def _beginnings(request: TraceRequest) -> list[tuple[str, int]]:
    """What its prompt may begin like, and for how many tokens."""
    found = []
    if request.session != "":
        found.append((f"session {request.session}", 1 << 30))
    if request.question != "":
        found.append((f"question {request.question}", request.prompt))
    if request.prefix != "" and request.prefix_tokens:
        found.append((f"prefix {request.prefix}", request.prefix_tokens))
    return found


class SimulatedReplica:
    """One engine. loaded_s, loaded_tokens: seconds that it has stepped with many streams, and what it computed then."""

    def __init__(self, world: simpy.Environment, engine: Header, times: StepTimes, step_overhead_s: float) -> None:
        """step_overhead_s: between steps, beyond what was measured of the engine alone."""
        self._world, self._engine, self._times, self._overhead_s = world, engine, times, step_overhead_s
        self._prompts: deque[SimulatedSequence] = deque()
        self._decoding: list[SimulatedSequence] = []
        self._woken = world.event()
        self.prefixes = SimulatedPrefixCache(engine.kv_tokens)
        self._together = (0.0, 0.0, 0)
        """Steps that are being taken together: when they began, seconds, and the tokens that they make."""
        self.loaded_s = 0.0
        self.loaded_tokens = 0
        world.process(self._run())

    @property
    def running(self) -> int:
        return len(self._decoding) + len(self._prompts)

    @property
    def waiting(self) -> int:
        """Tokens still to be computed. Of steps that are taken together, those that are over count as made."""
        began, seconds, tokens = self._together
        made = tokens * min(1.0, (self._world.now - began) / seconds) if seconds else 0.0
        return sum(one.waiting for one in self._prompts) + sum(one.left for one in self._decoding) - int(made)

    def add(self, work: SimulatedSequence) -> None:
        """Takes a request in."""
        work.computed = self.prefixes.found(work.request)
        self._prompts.append(work)
        if not self._woken.triggered:
            self._woken.succeed()

    def _run(self) -> Generator[simpy.Event, Any, None]:
        while True:
            if not self.running:
                self._woken = self._world.event()
                yield self._woken
            elif self._prompts:
                yield from self._mixed()
            else:
                yield from self._decode()

    def _mixed(self) -> Generator[simpy.Event, Any, None]:
        """One step with prompts in it."""
        decoding = list(self._decoding)
        left, behind, taken = (
            self._engine.max_num_batched_tokens - len(decoding),
            0,
            list[tuple[SimulatedSequence, int]](),
        )
        held = self._context + len(decoding)
        for one in self._prompts:
            size = min(left, one.request.prompt - one.computed)
            # What finds no place, or no room in the KV cache, waits until something ends.
            full = len(decoding) + len(taken) >= self._engine.max_num_seqs
            if size <= 0 or full or (held + one.computed + size > self._engine.kv_tokens and (decoding or taken)):
                break
            taken.append((one, size))
            behind += size * one.computed + size * (size - 1) // 2
            held += one.computed + size
            left -= size
        prefill = sum(size for _, size in taken)
        seconds = self._times.step(len(decoding), self._context, prefill, behind) + self._overhead_s
        self._note(seconds, prefill + len(decoding))
        yield self._world.timeout(seconds)
        for one, size in taken:
            one.computed += size
            if one.computed == one.request.prompt:
                self._prompts.remove(one)
                one.first = self._world.now
                one.begun.succeed()
                self._decoding.append(one)
                decoding.append(one)
        self._made(decoding, 1)

    def _decode(self) -> Generator[simpy.Event, Any, None]:
        """Steps of decoding alone, until a stream ends or a prompt comes."""
        batch, context = len(self._decoding), self._context
        steps = min(one.left for one in self._decoding)

        def until(count: int) -> float:
            return self._times.decode(batch, context, count) + count * self._overhead_s

        began = self._world.now
        self._woken = self._world.event()
        self._together = (began, until(steps), steps * batch)
        whole = self._world.timeout(until(steps))
        yield whole | self._woken
        if not whole.processed:
            # The step that goes on is finished first.
            passed, low = self._world.now - began, 1
            high = steps
            while low < high:
                middle = (low + high) // 2
                low, high = (middle + 1, high) if until(middle) < passed else (low, middle)
            steps = low
            yield self._world.timeout(max(0.0, until(steps) - passed))
        self._note(until(steps), steps * batch)
        self._together = (0.0, 0.0, 0)
        self._made(list(self._decoding), steps)

    def _note(self, seconds: float, tokens: int) -> None:
        if self.running >= self._engine.max_num_seqs // _WELL_LOADED:
            self.loaded_s += seconds
            self.loaded_tokens += tokens

    @property
    def _context(self) -> int:
        return sum(one.request.prompt + one.made for one in self._decoding)

    def _made(self, works: list[SimulatedSequence], tokens: int) -> None:
        for one in works:
            one.made += tokens
            if one.left <= 0:
                one.last = self._world.now
                self._decoding.remove(one)
                self.prefixes.add(one.request, one.request.prompt + one.made)
                one.done.succeed()
