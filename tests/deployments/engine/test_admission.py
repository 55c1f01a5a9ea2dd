"""Concurrent prompts with a common prefix: every greedy text equals that of an otherwise idle engine."""

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
from deployments.engine.pipeline import config_for
from deployments.generation.prompts import PromptRenderer


class Sequence:
    """A sequence as Admission sees it."""

    def __init__(self, prompt: list[int], generated: list[int] | None = None, namespace: str = "") -> None:
        self.tokens = prompt + (generated or [])
        self.keys = block_keys(prompt)
        self.prefilled = bool(generated)
        self.namespace = namespace


def waits(admission: Admission, prompt: list[int], *running: Sequence) -> bool:
    return admission.must_wait(prompt, block_keys(prompt), running)


SYSTEM = list(range(100, 100 + 2 * BLOCK_TOKENS))


def test_a_prompt_waits_for_a_running_sequence_that_is_its_prefix() -> None:
    admission = Admission(100, 512)
    running = Sequence(SYSTEM, [1, 2, 3])
    assert waits(admission, [*SYSTEM, 1, 2, 5], running), "the sequence's partial block holds 1 and 2"
    assert not waits(admission, [*SYSTEM, 1, 5, 2], running)
    assert not waits(admission, [*SYSTEM, 1], running), "the sequence is past that point"
    whole = Sequence(SYSTEM, [1])
    assert not waits(admission, [*SYSTEM, 1, 2], whole), "whole blocks are shared safely"


def test_a_common_prefix_is_computed_once() -> None:
    admission = Admission(100, 512)
    first = Sequence([*SYSTEM, 1, 2])
    assert waits(admission, [*SYSTEM, 7, 8], first)
    assert not waits(admission, [9, *SYSTEM], first)
    admission.prefilled(first)
    first.tokens, first.prefilled = [*first.tokens, 3], True
    assert not waits(admission, [*SYSTEM, 7, 8], first)


def test_only_one_prompt_continues_from_a_partial_block_that_was_left() -> None:
    admission = Admission(100, 512)
    admission.left(Sequence(SYSTEM, [1, 2, 3]))
    first = Sequence([*SYSTEM, 1, 2, 4, 4])
    assert not waits(admission, first.tokens)
    assert waits(admission, [*SYSTEM, 1, 2, 5, 5], first)
    assert not waits(admission, [*SYSTEM, 1, 3, 5, 5], first)
    for number in range(100):
        admission.left(Sequence([number] * 4, [1]))
    assert not waits(admission, [*SYSTEM, 1, 2, 5, 5], first), (
        "no more partial blocks are remembered than the cache has blocks"
    )


def test_a_full_step_admits_no_more_prompts() -> None:
    admission = Admission(100, 128)
    long = Sequence(list(range(300)))
    assert admission.joined(long.tokens, long.keys, "") == (0, 0)
    for full in (True, True, False):
        assert admission.full == full
        admission.stepped([long, Sequence(SYSTEM, [1])])


def test_a_namespace_is_told_only_of_blocks_that_it_has_used_itself() -> None:
    admission = Admission(100, 512)
    prompt, tokens = Sequence([*SYSTEM, 1], [2], "team.a"), 2 * BLOCK_TOKENS

    def cached(namespace: str) -> tuple[int, int]:
        return admission.joined(prompt.tokens, prompt.keys, namespace)

    assert cached("team.a") == (0, 0)
    admission.prefilled(prompt)
    assert cached("team.a") == (tokens, tokens)
    assert cached("team.b") == (tokens, 0), "cached, which only the engine knows"
    prompt.namespace = "team.b"
    admission.left(prompt)
    assert cached("team.b") == (tokens, tokens)
    for number in range(100):
        admission.left(Sequence([number] * (BLOCK_TOKENS + 1), [1], "team.c"))
    assert cached("team.a") == cached("team.b") == (0, 0), "what the cache no longer holds is not remembered either"


def undisturbed(engine: Engine, prompt: list[int]) -> list[int]:
    """The text that an idle engine generates."""
    engine.add(Add(1, EngineRequest(prompt, Sampling(1000))))
    text: list[int] = []
    while engine.busy:
        for tokens in engine.step().streams.values():
            text += tokens.ids
    return text


class Texts:
    """Requests that continue a text from several points on a busy engine, and the generated texts."""

    def __init__(self, engine: Engine, prompt: list[int], text: list[int]) -> None:
        self.engine, self.prompt, self.text = engine, prompt, text
        self._starts: dict[int, int] = {}
        self._generated: dict[int, list[int]] = {}
        self._number = 0

    def ask(self, start: int, tokens: int = 1000) -> None:
        """Requests a continuation after the first `start` tokens of the text."""
        self._number += 1
        self._starts[self._number], self._generated[self._number] = start, []
        self.engine.add(Add(self._number, EngineRequest(self.prompt + self.text[:start], Sampling(tokens))))

    def cancel_one_in_prefill(self) -> int | None:
        """Cancels a request whose prompt is being computed, if there is one; returns its start."""
        for number, ids in self._generated.items():
            if not ids:
                del self._generated[number]
                self.engine.cancel(Cancel(number))
                return self._starts[number]
        return None

    def step(self) -> None:
        for number, tokens in self.engine.step().streams.items():
            if number in self._generated:
                self._generated[number] += tokens.ids

    def finish(self) -> list[str]:
        """Runs steps until all requests are done; returns the wrong texts."""
        for _ in range(3 * len(self.text)):
            self.step()
        assert not self.engine.busy, "the engine is stuck"
        wrong = [
            f"from {self._starts[number]}: {ids[:8]}"
            for number, ids in self._generated.items()
            if ids != self.text[self._starts[number] :][: len(ids)]
        ]
        self._generated.clear()
        return wrong


def lagging(texts: Texts, chance: random.Random) -> None:
    """Several requests continue from nearby points, a few steps apart."""
    base = chance.randrange(len(texts.text) - 40)
    for _ in range(6):
        texts.ask(min(len(texts.text) - 2, base + chance.randrange(40)))
        for _ in range(chance.randrange(3)):
            texts.step()


def after_an_end(texts: Texts, chance: random.Random) -> None:
    """Several requests continue at the same time from near the point where another ended."""
    end = chance.randrange(len(texts.text) - 60)
    texts.ask(end, tokens=1)
    assert not texts.finish()
    for _ in range(6):
        texts.ask(end + chance.randrange(60))


def leaving(texts: Texts, chance: random.Random) -> None:
    """A client disconnects during the prefill, and another sends the same prompt."""
    for _ in range(5):
        texts.ask(chance.randrange(len(texts.text) - 2))
        texts.step()
        if (start := texts.cancel_one_in_prefill()) is not None:
            texts.ask(start)


@pytest.fixture(scope="module")
def calm(bundled: ServedModel) -> Engine:
    """Generates one text at a time."""
    return Engine(config_for(bundled, tuple(sorted(os.sched_getaffinity(0)))))


@pytest.mark.parametrize(("trouble", "step_tokens"), [(lagging, 512), (after_an_end, 512), (leaving, 40)])
def test_concurrent_sequences_do_not_change_a_text(
    bundled: ServedModel, calm: Engine, trouble: Callable[[Texts, random.Random], None], step_tokens: int
) -> None:
    config = config_for(bundled, tuple(sorted(os.sched_getaffinity(0))))
    busy = Engine(msgspec.structs.replace(config, max_num_batched_tokens=step_tokens))
    prompts = PromptRenderer(bundled)
    wrong = []
    for seed in range(12):
        chance = random.Random(f"{trouble.__name__} {seed}")
        question = f"What is {chance.randrange(100, 1000)} times {chance.randrange(100, 1000)}?"
        prompt = prompts.render(GenerationRequest((Message("user", question),), Sampling(1))).ids
        texts = Texts(busy, prompt, undisturbed(calm, prompt))
        trouble(texts, chance)
        wrong += [f"{question} {text}" for text in texts.finish()]
    assert not wrong
