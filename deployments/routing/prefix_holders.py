"""Which replicas hold the start of a prompt in their KV caches, as far as one router knows.

The prompts form a tree: where several share their first blocks, those blocks are kept once, with every replica that
holds them. So the size follows the prompts and not the replicas, and a choice walks its prompt once, however many
replicas there are. A run is a stretch of blocks behind which no prompt forks off (as in SGLang's radix tree); since a
key identifies all tokens up to its block's end, one equal key proves that everything before it is equal too.

A replica says until when the blocks that it has evicted were last used. Runs that it has used later are held.
"""

import math
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NewType

from deployments.common.prefix import BLOCK_TOKENS

_KEY_BYTES = 8
"""Bytes kept of a key. Two keys that agree in these cost a wrong choice, no more."""
_RUN_BYTES = 560
"""Memory of a run with one holder, besides its keys."""
_HOLDER_BYTES = 110
"""Memory of each further holder of a run."""
_MAX_BYTES = 36 * 2**20
_ASSUMED_BLOCKS = 2048
"""Blocks that a replica's cache is assumed to have, until it has reported."""
_OPENING_BLOCKS = 2
"""A conversation's next turn differs in this many last blocks of the prompt before: they hold the tokens that open the
assistant's turn."""
_DRAWN = 4
"""Of so many holders, drawn at random, one holds the run still and can be used; else all are looked at."""
_SPARE_HOLDERS = 16
"""Replicas that are gone stay with a run until it has this many more holders than there are replicas."""


PackedKeys = NewType("PackedKeys", bytes)
"""The keys of a prompt's blocks, cut and joined."""


def pack(keys: Iterable[bytes]) -> PackedKeys:
    """The keys as they are kept here. keys: of `block_keys`."""
    return PackedKeys(b"".join([key[:_KEY_BYTES] for key in keys]))


def first_blocks(keys: PackedKeys, count: int) -> PackedKeys:
    """The keys of the first blocks."""
    return PackedKeys(keys[: _KEY_BYTES * count])


class _Run:
    """keys: those of its blocks, joined. holders: by replica, when it last used the run. forked: whether other runs
    follow it."""

    __slots__ = ("forked", "holders", "keys")

    def __init__(self, keys: bytes, holders: dict[int, float], forked: bool) -> None:
        self.keys = keys
        self.holders = holders
        self.forked = forked

    @property
    def blocks(self) -> int:
        return len(self.keys) // _KEY_BYTES

    @property
    def memory(self) -> int:
        return _RUN_BYTES + len(self.keys) + _HOLDER_BYTES * (len(self.holders) - 1)

    def shared(self, keys: PackedKeys, start: int) -> int:
        """How many of its blocks the keys from the block `start` on have too. The first one must be equal."""
        least, most = 1, min(self.blocks, len(keys) // _KEY_BYTES - start)
        if self._has(most, keys, start):
            return most
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (middle, most) if self._has(middle, keys, start) else (least, middle)
        return least

    def _has(self, count: int, keys: PackedKeys, start: int) -> bool:
        end, start = _KEY_BYTES * count, _KEY_BYTES * (start + count - 1)
        return self.keys[end - _KEY_BYTES : end] == keys[start : start + _KEY_BYTES]


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """What replicas hold of one prompt.

    steps: ever longer starts of the prompt, as a number of blocks, each with the replicas that have used it and when.
    evicted_before: by replica, until when the blocks were last used that it has evicted.
    """

    steps: Sequence[tuple[int, dict[int, float]]]
    evicted_before: dict[int, float]

    def tokens(self, replica: int) -> int:
        """Tokens of the prompt that the replica need not compute."""
        for blocks, holders in reversed(self.steps):
            if self._holds(replica, holders):
                return blocks * BLOCK_TOKENS
        return 0

    def longest(self, usable: Callable[[int], bool], count: int) -> list[int]:
        """Up to `count` of the usable replicas that hold the most; they hold equally much. Of many, some at random."""
        for _, holders in reversed(self.steps):
            replicas = list(holders)
            for drawn in (random.sample(replicas, min(len(replicas), _DRAWN)), replicas):
                held = [replica for replica in drawn if self._holds(replica, holders) and usable(replica)]
                if held:
                    return held[:count]
        return []

    def _holds(self, replica: int, holders: dict[int, float]) -> bool:
        return holders.get(replica, -math.inf) > self.evicted_before.get(replica, math.inf)


class PrefixHolders:
    """The prompts that replicas hold. Replicas are given by a number, which `join` hands out."""

    def __init__(self, clock: Callable[[], float] = time.time, max_bytes: int = _MAX_BYTES) -> None:
        """clock: Unix time, which replicas on other machines report too. max_bytes: memory that it may take."""
        self._clock = clock
        self._max_bytes = max_bytes
        self._runs: OrderedDict[bytes, _Run] = OrderedDict()
        """By their first key, the least recently used first. A run follows those behind it, so it outlives them."""
        self._evicted_before: dict[int, float] = {}
        self._capacities: dict[int, int] = {}
        self._joined = 0
        self._capacity = 0
        self.blocks = 0
        """Blocks kept."""
        self.memory = 0
        """Bytes taken, as estimated."""

    def join(self) -> int:
        """The number of a new replica, which holds nothing."""
        self._joined += 1
        self._evicted_before[self._joined] = -math.inf
        self._capacities[self._joined] = _ASSUMED_BLOCKS
        self._capacity += _ASSUMED_BLOCKS
        return self._joined

    def leave(self, replica: int) -> None:
        """The replica is gone, and what it held."""
        del self._evicted_before[replica]
        self._capacity -= self._capacities.pop(replica)
        self._trim()

    def report(self, replica: int, blocks: int, evicted_before: float) -> None:
        """Takes what a replica says. blocks: that its cache has; 0: not known. evicted_before: until when those were
        last used that it has evicted, in Unix time; 0: none."""
        self._evicted_before[replica] = evicted_before or -math.inf
        blocks = blocks or self._capacities[replica]
        self._capacity += blocks - self._capacities[replica]
        self._capacities[replica] = blocks
        self._trim()

    def match(self, keys: PackedKeys) -> PrefixMatch:
        """What replicas hold of a prompt. keys: without its last token, which is always computed."""
        steps = [(end, run.holders) for end, run in self._walk(keys)]
        return PrefixMatch(steps, self._evicted_before)

    def add(self, keys: PackedKeys, replica: int) -> None:
        """The replica holds these blocks now. keys: of the start of a prompt."""
        blocks, now = len(keys) // _KEY_BYTES, self._clock()
        if blocks > self._capacities.get(replica, 0):
            return
        path = self._walk(keys)
        position = path[-1][0] if path else 0
        if path and (shared := position - (path[-2][0] if len(path) > 1 else 0)) < path[-1][1].blocks:
            self._leave_run(path[-1][1], shared, replica, ends=position == blocks)
        if position < blocks:
            self._append(path, keys[_KEY_BYTES * position :], replica)
        # The last run first: what follows a run is evicted before it.
        for _, run in reversed(path):
            self._use(run, replica, now)
        self._trim()

    def forget(self, keys: PackedKeys, replica: int, held: int) -> None:
        """The replica does not compute a prompt that was added for it. held: blocks of it that it had before."""
        begin = 0
        for end, run in self._walk(keys):
            if begin >= held and replica in run.holders:
                self._count(run, -1)
                del run.holders[replica]
                self._count(run, 1)
            begin = end

    def _walk(self, keys: PackedKeys) -> list[tuple[int, _Run]]:
        """The runs that begin a prompt, each with the number of the prompt's blocks up to where both agree."""
        path: list[tuple[int, _Run]] = []
        position, end = 0, len(keys)
        while (at := _KEY_BYTES * position) < end and (run := self._runs.get(keys[at : at + _KEY_BYTES])) is not None:
            shared = run.shared(keys, position)
            position += shared
            path.append((position, run))
            if shared < run.blocks:
                break
        return path

    def _leave_run(self, run: _Run, shared: int, replica: int, *, ends: bool) -> None:
        """A prompt of this replica has only the first `shared` blocks of a run. ends: nothing follows them."""
        if ends and replica in run.holders:
            return
        rest = run.keys[_KEY_BYTES * shared :]
        self._resize(run, run.keys[: _KEY_BYTES * shared])
        if not run.forked and len(rest) <= _KEY_BYTES * _OPENING_BLOCKS and run.holders.keys() == {replica}:
            return  # of a turn before
        self._insert(_Run(rest, dict(run.holders), run.forked))
        run.forked = True

    def _append(self, path: list[tuple[int, _Run]], keys: bytes, replica: int) -> None:
        """Adds what follows the runs of a path, and what was added to the path."""
        last = path[-1][1] if path else None
        if last is not None and not last.forked and last.holders.keys() == {replica}:
            self._resize(last, last.keys + keys)
            return
        if last is not None:
            last.forked = True
        run = _Run(keys, {replica: 0.0}, forked=False)
        self._insert(run)
        path.append((0, run))

    def _insert(self, run: _Run) -> None:
        first = run.keys[:_KEY_BYTES]
        # What followed a run that is gone may still be here.
        if (old := self._runs.pop(first, None)) is not None:
            self._count(old, -1)
        self._runs[first] = run
        self._count(run, 1)

    def _resize(self, run: _Run, keys: bytes) -> None:
        self._count(run, -1)
        run.keys = keys
        self._count(run, 1)

    def _use(self, run: _Run, replica: int, now: float) -> None:
        if replica not in run.holders:
            self._count(run, -1)
            if len(run.holders) > len(self._evicted_before) + _SPARE_HOLDERS:
                run.holders = {one: used for one, used in run.holders.items() if one in self._evicted_before}
            run.holders[replica] = now
            self._count(run, 1)
        run.holders[replica] = now
        self._runs.move_to_end(run.keys[:_KEY_BYTES])

    def _count(self, run: _Run, sign: int) -> None:
        self.blocks += sign * run.blocks
        self.memory += sign * run.memory

    def _trim(self) -> None:
        """Forgets what was used longest ago, while there is more than all caches can hold, or than memory allows."""
        while self._runs and (self.memory > self._max_bytes or self.blocks > self._capacity):
            _, run = self._runs.popitem(last=False)
            self._count(run, -1)
