"""Prompts that begin alike, at the same time: every greedy text is that of an engine with nothing else to do."""

import os
import random
from collections.abc import Callable

import msgspec
import pytest

from cluster.models.folder import ServedModel
from deployments.common.messages import Add, Cancel, EngineRequest, Sampling
from deployments.common.prefix import BLOCK_TOKENS, block_keys
from deployments.common.types import GenerationRequest, Message
from deployments.engine.admission import Admission
from deployments.engine.core import Engine
from deployments.engine.process import config_for
from deployments.generation.prompts import PromptRenderer


class Stream:
    """A stream as Admission sees it."""

    def __init__(self, prompt: list[int], made: list[int] | None = None) -> None:
        self.tokens = prompt + (made or [])
        self.keys = block_keys(prompt)
        self.announced = bool(made)


def waits(admission: Admission, prompt: list[int], *running: Stream) -> bool:
    return admission.clashes(prompt, block_keys(prompt), running)


SYSTEM = list(range(100, 100 + 2 * BLOCK_TOKENS))


def test_a_prompt_waits_for_the_one_whose_beginning_it_goes_on_from() -> None:
    admission = Admission(100, 512)
    running = Stream(SYSTEM, [1, 2, 3])
    assert waits(admission, [*SYSTEM, 1, 2, 5], running), "its begun block holds 1 and 2"
    assert not waits(admission, [*SYSTEM, 1, 5, 2], running)
    assert not waits(admission, [*SYSTEM, 1], running), "it is behind that already"
    whole = Stream(SYSTEM, [1])
    assert not waits(admission, [*SYSTEM, 1, 2], whole), "whole blocks are shared without harm"


def test_what_two_have_in_common_is_computed_once() -> None:
    admission = Admission(100, 512)
    first = Stream([*SYSTEM, 1, 2])
    assert waits(admission, [*SYSTEM, 7, 8], first)
    assert not waits(admission, [9, *SYSTEM], first)
    admission.computed(first)
    first.tokens, first.announced = [*first.tokens, 3], True
    assert not waits(admission, [*SYSTEM, 7, 8], first)


def test_only_one_goes_on_from_a_begun_block_that_was_left() -> None:
    admission = Admission(100, 512)
    admission.ended(Stream(SYSTEM, [1, 2, 3]))
    first = Stream([*SYSTEM, 1, 2, 4, 4])
    assert not waits(admission, first.tokens)
    assert waits(admission, [*SYSTEM, 1, 2, 5, 5], first)
    assert not waits(admission, [*SYSTEM, 1, 3, 5, 5], first)
    for number in range(100):
        admission.ended(Stream([number] * 4, [1]))
    assert not waits(admission, [*SYSTEM, 1, 2, 5, 5], first), "it holds no more than there are blocks"


def test_a_full_step_takes_no_more_prompts() -> None:
    admission = Admission(100, 128)
    long = Stream(list(range(300)))
    assert admission.begun(long.tokens, long.keys) == 0
    for full in (True, True, False):
        assert admission.full == full
        admission.stepped([long, Stream(SYSTEM, [1])])


def undisturbed(engine: Engine, prompt: list[int]) -> list[int]:
    """The text that an engine makes with nothing else to do."""
    engine.add(Add(1, EngineRequest(prompt, Sampling(1000))))
    text: list[int] = []
    while engine.busy:
        for tokens in engine.step().streams.values():
            text += tokens.ids
    return text


class Texts:
    """What a busy engine is asked of one text, and what it makes of it."""

    def __init__(self, engine: Engine, prompt: list[int], text: list[int]) -> None:
        self.engine, self.prompt, self.text = engine, prompt, text
        self._asked: dict[int, int] = {}
        self._made: dict[int, list[int]] = {}
        self._number = 0

    def ask(self, start: int, tokens: int = 1000) -> None:
        """Has it go on from the first tokens of the text."""
        self._number += 1
        self._asked[self._number], self._made[self._number] = start, []
        self.engine.add(Add(self._number, EngineRequest(self.prompt + self.text[:start], Sampling(tokens))))

    def leave_one(self) -> int | None:
        """Leaves one whose prompt is being computed, if there is any; gives where it began."""
        for number, made in self._made.items():
            if not made:
                del self._made[number]
                self.engine.cancel(Cancel(number))
                return self._asked[number]
        return None

    def step(self) -> None:
        for number, tokens in self.engine.step().streams.items():
            if number in self._made:
                self._made[number] += tokens.ids

    def finish(self) -> list[str]:
        """Steps to the end; gives the wrong ones."""
        for _ in range(3 * len(self.text)):
            self.step()
        assert not self.engine.busy, "it makes nothing any more"
        wrong = [
            f"from {self._asked[number]}: {made[:8]}"
            for number, made in self._made.items()
            if made != self.text[self._asked[number] :][: len(made)]
        ]
        self._made.clear()
        return wrong


def lagging(texts: Texts, chance: random.Random) -> None:
    """Many go on from places close to each other, some steps apart."""
    base = chance.randrange(len(texts.text) - 40)
    for _ in range(6):
        texts.ask(min(len(texts.text) - 2, base + chance.randrange(40)))
        for _ in range(chance.randrange(3)):
            texts.step()


def after_an_end(texts: Texts, chance: random.Random) -> None:
    """Many at once go on from where another has ended."""
    end = chance.randrange(len(texts.text) - 60)
    texts.ask(end, tokens=1)
    assert not texts.finish()
    for _ in range(6):
        texts.ask(end + chance.randrange(60))


def leaving(texts: Texts, chance: random.Random) -> None:
    """Who asks leaves while the prompt is computed, and another asks the same."""
    for _ in range(5):
        texts.ask(chance.randrange(len(texts.text) - 2))
        texts.step()
        if (start := texts.leave_one()) is not None:
            texts.ask(start)


@pytest.fixture(scope="module")
def calm(bundled: ServedModel) -> Engine:
    """Makes one text at a time."""
    return Engine(config_for(bundled, tuple(sorted(os.sched_getaffinity(0)))))


@pytest.mark.parametrize(("trouble", "step_tokens"), [(lagging, 512), (after_an_end, 512), (leaving, 40)])
def test_texts_are_right_whatever_runs_beside_them(
    bundled: ServedModel, calm: Engine, trouble: Callable[[Texts, random.Random], None], step_tokens: int
) -> None:
    config = config_for(bundled, tuple(sorted(os.sched_getaffinity(0))))
    busy = Engine(msgspec.structs.replace(config, max_num_batched_tokens=step_tokens))
    prompts = PromptRenderer(bundled)
    wrong = []
    for seed in range(25):
        chance = random.Random(f"{trouble.__name__} {seed}")
        asked = f"What is {chance.randrange(100, 1000)} times {chance.randrange(100, 1000)}?"
        prompt = prompts.render(GenerationRequest((Message("user", asked),), Sampling(1))).ids
        texts = Texts(busy, prompt, undisturbed(calm, prompt))
        trouble(texts, chance)
        wrong += [f"{asked} {one}" for one in texts.finish()]
    assert not wrong
