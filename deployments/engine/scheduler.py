"""Which sequences the next step computes, and how many tokens of each.

Running streams come first: each gets its next token. Then prompt tokens fill the step up to what `StepPace` allows, the
most important prompt first. Batch work stands still while a prompt of people is computed. A sequence takes the blocks
that others have computed; while another one is computing the block that it needs next, it waits for that block. Where
KV blocks or places run out, the least important sequence gives its own back and is computed again later.
"""

import math
from bisect import insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import merge

from deployments.common.prefix import BLOCK_TOKENS, PrefixMirror, keys_of
from deployments.engine.blocks import BlockPool
from deployments.engine.pace import StepPace
from deployments.engine.sequence import Sequence

_MAX_LOGIT_ROWS = 64
"""Of one sequence in a step: 40 MB for a vocabulary of 152,000 words."""


@dataclass(slots=True)
class Work:
    """What a step computes of a sequence: its next `count` tokens, and after them `guesses`."""

    sequence: Sequence
    count: int
    guesses: tuple[int, ...] = ()

    @property
    def samples(self) -> bool:
        """Whether the step leaves nothing pending, so that the next token can be sampled."""
        return self.count == self.sequence.pending

    @property
    def rows(self) -> int:
        """How many of the last tokens need logits: those to sample after, or all of a prompt with log probabilities."""
        return self.count if self.sequence.reports_prompt else self.samples + len(self.guesses)

    @property
    def is_batch(self) -> bool:
        """Whether nobody waits for it."""
        return self.sequence.request.priority > 0

    @property
    def decodes(self) -> bool:
        """Whether it computes one token of the text alone, as a running stream does."""
        return self.count == 1 and self.samples


class Scheduler:
    """The sequences that run and wait. running, waiting: the most important first.

    starved: sequences that the whole KV cache cannot hold; whoever reads the list empties it.
    """

    def __init__(self, pool: BlockPool, pace: StepPace, max_sequences: int, max_tokens: int) -> None:
        """max_tokens: in one step."""
        self.pool = pool
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.starved: list[Sequence] = []
        self._pace = pace
        self._max_sequences = max_sequences
        self._max_tokens = max_tokens
        self._used_by_namespace = PrefixMirror(pool.capacity)
        """The cached blocks, each under the namespaces that have used it."""
        self._plan: dict[int, Work] = {}
        self._preempted: set[int] = set()
        """Sequences that have lost their place in this plan."""

    def add(self, sequence: Sequence) -> None:
        """Lets the sequence wait for a place."""
        insort(self.waiting, sequence, key=_importance)

    def remove(self, sequence: Sequence) -> None:
        """Ends a sequence. Its whole blocks stay cached."""
        if sequence.admitted:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    @property
    def prefills(self) -> bool:
        """Whether prompt tokens are still to compute."""
        return bool(self.waiting) or any(sequence.pending > 1 for sequence in self.running)

    def plan(self, guesses: Mapping[int, tuple[int, ...]]) -> list[Work]:
        """What the next step computes; empty if there is nothing to do.

        guesses: of decoding sequences, by their number. They are left out where KV blocks are short.
        """
        self._plan = {}
        self._preempted.clear()
        decoding = [sequence for sequence in self.running if sequence.pending == 1]
        prompts = [*self.waiting[:1], *(sequence for sequence in self.running if sequence.pending > 1)]
        first = min((sequence.request.priority for sequence in prompts), default=math.inf)
        self._plan_decoding([sequence for sequence in decoding if sequence.request.priority <= first], guesses)
        tokens = sum(1 + len(work.guesses) for work in self._plan.values())
        # People wait for the end of a step: batch work never makes one long, and adds nothing to their prompts.
        self._plan_prompts(
            min(self._pace.prompt_tokens(tokens), self._max_tokens - tokens),
            self._pace.prompt_tokens(max(tokens, 1)) if first > 0 else 0,
        )
        if not self._plan:
            self._plan_decoding(decoding, guesses)
        return list(self._plan.values())

    def computed(self, work: Work, accepted: int = 0) -> None:
        """Records that a step has computed this. accepted: how many of the guesses are right."""
        sequence = work.sequence
        first = sequence.computed // BLOCK_TOKENS
        sequence.computed += work.count + accepted
        for index in range(first, min(sequence.computed // BLOCK_TOKENS, len(sequence.keys))):
            key = sequence.keys[index]
            self.pool.register(sequence.table[index], key)
            self._used_by_namespace.add(keys_of(sequence.request.namespace, (key,)))

    def _plan_decoding(self, sequences: Iterable[Sequence], guesses: Mapping[int, tuple[int, ...]]) -> None:
        for sequence in sequences:
            # A more important one of these may have taken this one's blocks.
            if sequence.admitted and self._grow(sequence, 1):
                self._plan[sequence.number] = Work(sequence, 1, self._room_for(sequence, guesses))

    def _room_for(self, sequence: Sequence, guesses: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
        """The sequence's guesses, if there are blocks for them that nobody else needs."""
        tokens = guesses.get(sequence.number, ())
        needed = sequence.missing_blocks(1 + len(tokens))
        if needed > self.pool.available - len(self.running):
            return ()
        if needed > 0:
            sequence.table += self.pool.allocate(needed)
        return tokens

    def _plan_prompts(self, budget: int, batch_budget: int) -> None:
        """batch_budget: tokens up to which a step may be filled for batch work."""
        computing: set[bytes] = set()
        full = False
        prefilling = [sequence for sequence in self.running if sequence.pending > 1]
        for sequence in merge(prefilling, tuple(self.waiting), key=_importance):
            if sequence.request.priority > 0:
                budget = min(budget, batch_budget)
            if budget <= 0:
                return
            if sequence.number in self._preempted or sequence.next_key in computing:
                continue
            if not sequence.admitted:
                full = full or not self._admit(sequence)
                if full:
                    continue  # nobody overtakes, but those that run go on
            self._attach(sequence)
            if sequence.next_key in computing:
                continue
            count = _chunk(sequence, budget)
            if self._grow(sequence, count):
                self._plan[sequence.number] = Work(sequence, count)
                computing.update(sequence.keys[sequence.computed // BLOCK_TOKENS :])
                budget -= count
                batch_budget -= count

    def _admit(self, sequence: Sequence) -> bool:
        """Gives a waiting sequence a place, if there is one and the blocks for its tokens."""
        while len(self.running) >= self._max_sequences or not self._fits(sequence):
            if not self.running or self.running[-1].request.priority <= sequence.request.priority:
                return False
            self._preempt(self.running[-1])
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_importance)
        sequence.admitted = True
        return True

    def _fits(self, sequence: Sequence) -> bool:
        """Whether there are blocks for a sequence's tokens, and one more for each that runs already."""
        if not self.running:
            return True
        blocks = -(-(len(sequence.tokens) + 1) // BLOCK_TOKENS) - self.pool.shared(sequence.keys)
        return blocks + len(self.running) <= self.pool.available

    def _attach(self, sequence: Sequence) -> None:
        """Takes the next blocks from the prefix cache, as far as they are there."""
        while (key := sequence.next_key) is not None and self.pool.cached(key):
            sequence.table.append(self.pool.share(key))
            if sequence.generated == 0:
                [own] = keys_of(sequence.request.namespace, (key,))
                if sequence.own_cached == sequence.cached and self._used_by_namespace.match((own,)):
                    sequence.own_cached += BLOCK_TOKENS
                sequence.cached += BLOCK_TOKENS
            sequence.computed += BLOCK_TOKENS
            self._used_by_namespace.add(keys_of(sequence.request.namespace, (key,)))

    def _grow(self, sequence: Sequence, count: int) -> bool:
        """Allocates blocks for `count` more tokens, taking them from less important sequences if need be.

        False: the sequence itself was the least important one, and has given its blocks back.
        """
        needed = sequence.missing_blocks(count)
        if needed <= 0:
            return True
        while needed > self.pool.available:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.table += self.pool.allocate(needed)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Takes place and blocks from a sequence. It waits, and is computed again as far as its blocks are lost."""
        alone = len(self.running) == 1
        self.running.remove(sequence)
        sequence.admitted = False
        self._preempted.add(sequence.number)
        self._plan.pop(sequence.number, None)
        self._release(sequence)
        if alone or len(sequence.tokens) >= self.pool.capacity * BLOCK_TOKENS:
            self.starved.append(sequence)
        else:
            insort(self.waiting, sequence, key=_importance)

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.table)
        sequence.table, sequence.computed = [], 0


def _importance(sequence: Sequence) -> tuple[int, int]:
    return sequence.importance


def _chunk(sequence: Sequence, budget: int) -> int:
    """How many of its pending tokens fit into the budget: all, or up to the end of a block where that is any."""
    if sequence.reports_prompt:
        budget = min(budget, _MAX_LOGIT_ROWS)
    if sequence.pending <= budget:
        return sequence.pending
    end = (sequence.computed + budget) // BLOCK_TOKENS * BLOCK_TOKENS
    return end - sequence.computed if end > sequence.computed else budget
