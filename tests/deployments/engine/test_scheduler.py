"""Blocks and scheduling, over a KV cache that remembers which text was written where."""

import random
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deployments.common.messages import EngineRequest, Sampling
from deployments.common.prefix import BLOCK_TOKENS
from deployments.engine.blocks import BlockPool
from deployments.engine.pace import StepPace
from deployments.engine.sampling_state import SamplingState
from deployments.engine.scheduler import Scheduler
from deployments.engine.sequence import Sequence


class Machine:
    """A scheduler, and in place of the model one that writes and checks the KV cache.

    Each cell holds the text up to its token, as a real one depends on it. The text that a sequence goes on with depends
    on the text so far alone.
    """

    def __init__(self, blocks: int, max_sequences: int, max_tokens: int, *, guesses: bool = False) -> None:
        self.guesses = guesses
        self.chance = random.Random(0)
        self.pool = BlockPool(blocks)
        pace = StepPace(2.0, max_tokens, BLOCK_TOKENS)
        self.scheduler = Scheduler(self.pool, pace, max_sequences, max_tokens)
        self.max_tokens = max_tokens
        self.cells: dict[tuple[int, int], tuple[int, ...]] = {}
        self.alive: dict[int, Sequence] = {}
        self.finished: dict[int, Sequence] = {}
        self.starved: list[Sequence] = []
        self.computed = 0
        self._numbers = count(1)

    def add(self, prompt: list[int], tokens: int, *, priority: int = 0, namespace: str = "") -> Sequence:
        number = next(self._numbers)
        request = EngineRequest(prompt, Sampling(tokens), priority=priority, namespace=namespace)
        state = SamplingState(request.sampling, prompt, 0, set(), 1000)
        self.alive[number] = sequence = Sequence(number, number, request, state, salt=namespace.encode())
        self.scheduler.add(sequence)
        return sequence

    def cancel(self, number: int) -> None:
        self.scheduler.remove(self.alive.pop(number))

    def step(self) -> list[Sequence]:
        """Returns the sequences that got a token."""
        decoding = [sequence for sequence in self.scheduler.running if sequence.pending == 1]
        plan = self.scheduler.plan({sequence.number: self._guess(sequence) for sequence in decoding})
        assert sum(work.count for work in plan) <= self.max_tokens
        for sequence in self.scheduler.starved:
            self.starved.append(self.alive.pop(sequence.number))
        self.scheduler.starved.clear()
        assert plan or not self.alive, "there is work, and nothing is planned"
        written: set[tuple[int, int]] = set()
        for work in plan:
            text = [*work.sequence.tokens, *work.guesses]
            for position in range(work.sequence.computed, work.sequence.computed + work.count + len(work.guesses)):
                cell = _cell(work.sequence, position)
                assert cell not in written, "two sequences write one cell"
                written.add(cell)
                self.cells[cell] = _content(work.sequence, text, position)
            self.computed += work.count
        sampled = []
        for work in plan:
            sequence = work.sequence
            for position in range(sequence.computed + work.count):
                expected = _content(sequence, sequence.tokens, position)
                assert self.cells[_cell(sequence, position)] == expected, (
                    "a sequence reads what belongs to another text"
                )
            if not work.samples:
                self.scheduler.computed(work)
                continue
            tokens = [_next(sequence.tokens)]
            while len(tokens) <= len(work.guesses) and tokens[-1] == work.guesses[len(tokens) - 1]:
                tokens.append(_next([*sequence.tokens, *tokens]))
            sequence.append(tokens)
            self.scheduler.computed(work, len(tokens) - 1)
            sampled.append(sequence)
            if sequence.left <= 0:
                self.finished[sequence.number] = self.alive.pop(sequence.number)
                self.scheduler.remove(sequence)
        return sampled

    def _guess(self, sequence: Sequence) -> tuple[int, ...]:
        """Up to four guesses, of which the first ones are right."""
        if not self.guesses:
            return ()
        text = list(sequence.tokens)
        for _ in range(min(4, sequence.left - 1)):
            text.append(_next(text))
        right = self.chance.randrange(5)
        return tuple(token if n < right else 999 for n, token in enumerate(text[len(sequence.tokens) :]))

    def check(self) -> None:
        users = [0] * self.pool.capacity
        for sequence in self.alive.values():
            assert sequence.admitted or not sequence.table
            for block in sequence.table:
                users[block] += 1
        assert users == self.pool._users, "blocks are counted as often as they are used"
        assert self.pool.used == sum(user > 0 for user in users)
        assert len(self.scheduler.running) + len(self.scheduler.waiting) == len(self.alive)


def _cell(sequence: Sequence, position: int) -> tuple[int, int]:
    return sequence.table[position // BLOCK_TOKENS], position % BLOCK_TOKENS


def _content(sequence: Sequence, text: list[int], position: int) -> tuple[int, ...]:
    return (*sequence.request.namespace.encode(), -1, *text[: position + 1])


def _next(text: list[int]) -> int:
    return hash(tuple(text)) % 3


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        blocks=st.integers(3, 40),
        max_sequences=st.integers(1, 6),
        max_tokens=st.sampled_from((32, 40, 64, 512)),
        guesses=st.booleans(),
    )
    def start(self, blocks: int, max_sequences: int, max_tokens: int, guesses: bool) -> None:
        self.machine = Machine(blocks, max_sequences, max_tokens, guesses=guesses)

    @rule(
        length=st.integers(1, 200),
        start=st.integers(0, 1),
        own=st.integers(0, 60),
        tokens=st.integers(1, 100),
        priority=st.integers(0, 1),
        namespace=st.sampled_from(("", "a")),
    )
    def add(self, length: int, start: int, own: int, tokens: int, priority: int, namespace: str) -> None:
        prompt = ([start] * length + list(range(100, 100 + own)))[: self.machine.pool.capacity * BLOCK_TOKENS - 1]
        self.machine.add(prompt, tokens, priority=priority, namespace=namespace)

    @precondition(lambda self: self.machine.alive)
    @rule(choice=st.integers(0, 1000))
    def cancel(self, choice: int) -> None:
        numbers = list(self.machine.alive)
        self.machine.cancel(numbers[choice % len(numbers)])

    @precondition(lambda self: self.machine.alive)
    @rule(steps=st.integers(1, 10))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            if self.machine.alive:
                self.machine.step()

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "machine"):
            self.machine.check()

    def teardown(self) -> None:
        if hasattr(self, "machine"):
            for _ in range(20_000):
                if not self.machine.alive:
                    break
                self.machine.step()
            assert not self.machine.alive, "some sequence never ends"
            assert self.machine.pool.used == 0


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_common_start_is_computed_once() -> None:
    machine = Machine(100, 8, 512)
    start = list(range(10 * BLOCK_TOKENS))
    for number in range(5):
        machine.add([*start, 500 + number], 3)
    while machine.alive:
        machine.step()
    assert machine.computed == len(start) + 5 * 3
    assert sorted(sequence.cached for sequence in machine.finished.values()) == [0, *[len(start)] * 4]


def test_a_cancel_in_the_prefill_leaves_only_whole_blocks() -> None:
    machine = Machine(100, 8, 64)
    prompt = list(range(300))
    first = machine.add(prompt, 3)
    machine.step()
    machine.cancel(first.number)
    second = machine.add(prompt, 3)
    while machine.alive:
        machine.step()
    assert second.cached == 64


def test_running_streams_get_a_token_in_every_step() -> None:
    machine = Machine(200, 8, 128)
    running = [machine.add([number] * 10, 200) for number in range(4)]
    while any(sequence.pending > 1 for sequence in running):
        machine.step()
    machine.add(list(range(1000)), 3)
    while machine.scheduler.waiting or any(sequence.pending > 1 for sequence in machine.alive.values()):
        assert set(running) <= set(machine.step())


def test_people_come_before_batch_work() -> None:
    machine = Machine(200, 2, 128)
    batch = [machine.add([number] * 40, 50, priority=1) for number in range(3)]
    machine.step()
    person = machine.add([7] * 30, 2)
    assert person in machine.step(), "it takes the place of the youngest"
    assert [sequence.admitted for sequence in batch] == [True, False, False]
    while machine.alive:
        machine.step()
    assert [sequence.generated for sequence in batch] == [50] * 3


def test_batch_work_stands_still_while_a_prompt_of_people_is_computed() -> None:
    machine = Machine(200, 8, 64)
    batch = [machine.add([number] * 10, 200, priority=1) for number in range(3)]
    while any(sequence.pending > 1 for sequence in batch):
        machine.step()
    first = machine.add(list(range(200)), 50)
    while first.pending > 1:
        before = first.computed
        assert set(machine.step()) <= {first}
        assert first.computed - before == 64 or first.generated, "nobody needs to be considered"
    second = machine.add(list(range(300, 500)), 50)
    while second.pending > 1:
        assert first in machine.step(), "people do not stand still"
    assert set(machine.step()) == {first, second, *batch}
    prompt = machine.add([9] * 200, 5, priority=1)
    assert {first, second, *batch} <= set(machine.step()), "nor does anybody for a prompt of batch work"
    before, third = prompt.computed, machine.add([4] * 20, 50)
    assert third in machine.step() and prompt.computed == before, "which adds nothing to a short prompt of people"


def test_prompts_of_batch_work_never_make_a_step_long() -> None:
    machine = Machine(200, 16, 512)
    pace = machine.scheduler._pace
    pace.observe(1, 0, 0.1)
    pace.observe(0, 512, 2.0)
    allowed = pace.prompt_tokens(1)
    assert 16 <= allowed < 128
    batch = [machine.add([number] * 60, 200, priority=1) for number in range(6)]
    before = 0
    while any(sequence.pending > 1 for sequence in batch):
        machine.step()
        assert machine.computed - before <= allowed + len(batch)
        before = machine.computed
    person = machine.add(list(range(400)), 3)
    assert person in machine.step(), "people's take what is efficient"


def test_short_of_blocks_the_youngest_is_computed_again() -> None:
    machine = Machine(8, 4, 128)
    sequences = [machine.add([number] * 40, 150) for number in range(3)]
    while machine.alive:
        machine.step()
    assert not machine.starved and len(machine.finished) == 3
    assert list(machine.finished) == [sequence.number for sequence in sequences], "the oldest ends first"
    again = Machine(8, 4, 128)
    again.add([2] * 40, 150)
    while again.alive:
        again.step()
    assert next(iter(again.finished.values())).tokens == sequences[2].tokens, "and its text is the same"


def test_what_the_whole_cache_cannot_hold_ends_alone() -> None:
    machine = Machine(4, 4, 128)
    large = machine.add([1] * 100, 100)
    small = machine.add([2] * 10, 10)
    while machine.alive:
        machine.step()
    assert machine.starved == [large] and small.number in machine.finished


def test_namespaces_know_only_of_blocks_that_they_have_used() -> None:
    machine = Machine(100, 8, 512)

    def own_cached(namespace: str) -> tuple[int, int]:
        sequence = machine.add(list(range(100)), 1)
        sequence.request = EngineRequest(sequence.request.prompt_ids, Sampling(1), namespace=namespace)
        while machine.alive:
            # The Machine writes texts by namespace, which here share their blocks.
            work = machine.scheduler.plan({})[0]
            machine.scheduler.computed(work)
            if work.sequence.pending == 0:
                machine.cancel(sequence.number)
        return sequence.cached, sequence.own_cached

    assert [own_cached(name) for name in ("a", "a", "b", "b")] == [(0, 0), (96, 96), (96, 0), (96, 96)]


def test_the_pace_keeps_steps_within_the_slowdown() -> None:
    pace = StepPace(2.0, 512, BLOCK_TOKENS)
    assert pace.prompt_tokens(0) == 512
    assert pace.prompt_tokens(4) == BLOCK_TOKENS, "nothing is known yet"
    chance = random.Random(0)
    for _ in range(200):
        for tokens in (0, 32, 64, 128, 512):
            pace.observe(4, tokens, (0.1 + tokens * 0.001) * chance.uniform(0.9, 1.1))
    assert 64 <= pace.prompt_tokens(4) <= 112
    assert pace.prompt_tokens(0) == 512
    pace.observe(4, 0, 60.0)
    assert pace.prompt_tokens(4) <= 160, "one step that something else held up does not count in full"
