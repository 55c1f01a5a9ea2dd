"""The engine on the bundled model: whatever happens around it, a stream's text is that of an otherwise idle engine."""

import json
import os
import random
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec
import pytest

from cluster.models.folder import ServedModel
from deployments.common.grammars import json_grammar
from deployments.common.messages import (
    Add,
    Arithmetic,
    Cancel,
    EngineRequest,
    Grammar,
    Sampling,
    TokenBatch,
    TokenLogprobs,
)
from deployments.common.types import GenerationRequest, Message
from deployments.engine.engine import Engine
from deployments.engine.model import config_for
from deployments.generation.prompts import PromptRenderer


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


def companions(texts: Texts, chance: random.Random) -> None:
    """Of two requests with a common start, the one leaves that computes it while the other waits for its blocks."""
    for _ in range(3):
        start = chance.randrange(len(texts.text) // 2, len(texts.text) - 2)
        texts.ask(start)
        texts.ask(start + 1)
        for _ in range(chance.randrange(1, 5)):
            texts.step()
        texts.cancel_one_in_prefill()


def over_the_limit(texts: Texts, chance: random.Random) -> None:
    """More requests than the KV cache has room for, so that some are preempted and computed again."""
    for _ in range(12):
        texts.ask(chance.randrange(len(texts.text) - 2))
        texts.step()


EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Logits that do not depend on the size of the batch, so that draws are equal too."""


def engine(model: ServedModel, properties: Mapping[str, str] = MappingProxyType({}), **otherwise: Any) -> Engine:
    config = config_for(model, tuple(sorted(os.sched_getaffinity(0))))
    return Engine(msgspec.structs.replace(config, **otherwise), properties)


@pytest.fixture(scope="module")
def calm(bundled: ServedModel) -> Engine:
    """Generates one text at a time, without guesses."""
    return engine(bundled, guess_tokens=False)


@pytest.fixture(scope="module")
def exact(bundled: ServedModel) -> Engine:
    """The same, in full precision."""
    return engine(bundled, EXACT, guess_tokens=False)


@pytest.mark.parametrize(
    ("trouble", "otherwise"),
    [
        (lagging, {}),
        (after_an_end, {}),
        (leaving, {"max_num_batched_tokens": 40}),
        (companions, {"max_num_batched_tokens": 40}),
        (over_the_limit, {"kv_cache_mb": 2}),
    ],
)
def test_nothing_around_it_changes_a_text(
    bundled: ServedModel, calm: Engine, trouble: Callable[[Texts, random.Random], None], otherwise: dict[str, Any]
) -> None:
    busy = engine(bundled, **otherwise)
    prompts = PromptRenderer(bundled)
    wrong = []
    for seed in range(4):
        chance = random.Random(f"{trouble.__name__} {seed}")
        question = f"What is {chance.randrange(100, 1000)} times {chance.randrange(100, 1000)}?"
        prompt = prompts.render(GenerationRequest((Message("user", question),), Sampling(1))).ids
        texts = Texts(busy, prompt, undisturbed(calm, prompt))
        trouble(texts, chance)
        wrong += [f"{question} {text}" for text in texts.finish()]
    assert not wrong


def generate(engine: Engine, *requests: EngineRequest) -> list[list[int]]:
    """The completions of these requests, computed together."""
    texts: list[list[int]] = [[] for _ in requests]
    for number, request in enumerate(requests):
        engine.add(Add(number, request))
    while engine.busy:
        for number, batch in engine.step().streams.items():
            texts[number] += batch.ids
    return texts


REPEATED = list(range(20, 60)) * 3


@pytest.mark.parametrize("sampling", [Sampling(80, ignore_eos=True), Sampling(80, 0.8, seed=5, ignore_eos=True)])
def test_guesses_change_no_text_and_save_steps(bundled: ServedModel, exact: Engine, sampling: Sampling) -> None:
    """Sampled texts are the same too: each position of a text has its own random number."""
    guessing = engine(bundled, EXACT)
    [plain] = generate(exact, EngineRequest(REPEATED, sampling))
    assert generate(guessing, EngineRequest(REPEATED, sampling)) == [plain]
    earlier = guessing.load.decoded_tokens
    steps = 0
    guessing.add(Add(1, EngineRequest(REPEATED, sampling, namespace="")))
    while guessing.busy:
        guessing.step()
        steps += 1
    assert steps < len(plain), "its own earlier answer is the source of guesses"
    assert guessing.load.decoded_tokens - earlier == len(plain)


def test_a_stream_carried_on_elsewhere_draws_what_it_would_have_drawn(bundled: ServedModel, exact: Engine) -> None:
    sampling = Sampling(60, 0.9, top_p=0.95, seed=11, presence_penalty=0.7, ignore_eos=True)
    [whole] = generate(exact, EngineRequest(REPEATED, sampling))
    carried_on = EngineRequest(REPEATED + whole[:23], sampling, generated_tokens=23)
    assert generate(exact, carried_on) == [whole[23:]]


def test_preempted_streams_draw_what_they_would_have_drawn(bundled: ServedModel, exact: Engine) -> None:
    """The KV cache holds less than half of them; what is sampled does not depend on that."""
    requests = [EngineRequest([20 + n] * 40, Sampling(200, 0.9, seed=n, ignore_eos=True)) for n in range(6)]
    alone = [generate(exact, request)[0] for request in requests]
    small = engine(bundled, EXACT, kv_cache_mb=4)
    assert small.kv_tokens < 6 * 240 / 2
    for number, request in enumerate(requests):
        small.add(Add(number, request))
    texts: list[list[int]] = [[] for _ in requests]
    preempted = 0
    while small.busy:
        for number, batch in small.step().streams.items():
            texts[number] += batch.ids
        begun = sum(0 < len(text) < 200 for text in texts)
        preempted += small.load.running < begun
    assert texts == alone
    assert preempted, "some stream had tokens and no place"


def test_prefixes_are_shared_only_within_a_namespace_where_that_is_asked_for(bundled: ServedModel) -> None:
    def cached(engine: Engine, namespace: str) -> tuple[int, int]:
        engine.add(Add(1, EngineRequest(REPEATED, Sampling(1), namespace=namespace)))
        while not (streams := engine.step().streams):
            pass
        return streams[1].cached_tokens, streams[1].own_cached_tokens

    shared, isolated = engine(bundled), engine(bundled, isolate_prefixes=True)
    assert [cached(shared, name) for name in "aabb"] == [(0, 0), (96, 96), (96, 0), (96, 96)]
    assert [cached(isolated, name) for name in "aabb"] == [(0, 0), (96, 96), (0, 0), (96, 96)]


def test_running_streams_go_on_while_a_long_prompt_comes_in(bundled: ServedModel) -> None:
    busy = engine(bundled)
    for number in range(4):
        busy.add(Add(number, EngineRequest([number + 5] * 20, Sampling(2000, ignore_eos=True))))
    while busy.next_tokens > 4:
        busy.step()
    busy.add(Add(9, EngineRequest(list(range(1500)), Sampling(1))))
    steps = 0
    while 9 not in (streams := busy.step().streams):
        assert set(streams) == {0, 1, 2, 3}
        steps += 1
    assert steps >= 2


def test_what_does_not_fit_is_refused_and_costs_the_others_nothing(bundled: ServedModel) -> None:
    small = engine(bundled, kv_cache_mb=1)
    prompt = list(range(100))
    small.add(Add(1, EngineRequest(list(range(2000)) * 9, Sampling(1))))
    small.add(Add(2, EngineRequest([10**6], Sampling(1))))
    small.add(Add(3, EngineRequest(prompt, Sampling(5, ignore_eos=True))))
    ends: dict[int, str] = {}
    while small.busy:
        ends |= {number: batch.finish_reason for number, batch in small.step().streams.items() if batch.finish_reason}
    assert ends == {1: "overloaded", 2: "invalid", 3: "length"}
    small.add(Add(4, EngineRequest(prompt, Sampling(10**6, ignore_eos=True))))
    while small.busy:
        ends |= {number: batch.finish_reason for number, batch in small.step().streams.items() if batch.finish_reason}
    assert ends[4] == "overloaded", "alone, and more than the whole KV cache"


SCHEMA = {
    "type": "object",
    "properties": {"first": {"enum": ["北京", "上海"]}, "second": {"type": "integer", "minimum": 3, "maximum": 12}},
    "required": ["first", "second"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_grammar_holds_with_guesses_and_carried_on(bundled: ServedModel, exact: Engine, temperature: float) -> None:
    sampling = Sampling(200, temperature, seed=3, grammar=Grammar(json_grammar(json.dumps(SCHEMA))))
    guessing = engine(bundled, EXACT)
    request = EngineRequest(REPEATED, sampling)
    [plain] = generate(exact, request)
    assert generate(guessing, request) == [plain]
    assert guessing.load.accepted_tokens > 5, "what the grammar forces is guessed"
    assert generate(exact, EngineRequest(REPEATED + plain[:4], sampling, generated_tokens=4)) == [plain[4:]]
    decoded = json.loads(PromptRenderer(bundled).vocabulary.tokenizer.decode(plain))
    assert decoded["first"] in ("北京", "上海") and 3 <= decoded["second"] <= 12


def test_a_grammar_that_fails_ends_its_own_stream_alone(calm: Engine) -> None:
    calm.add(Add(1, EngineRequest(REPEATED, Sampling(9, grammar=Grammar("start: undefined")))))
    calm.add(Add(2, EngineRequest(REPEATED, Sampling(9, ignore_eos=True))))
    ends: dict[int, TokenBatch] = {}
    while calm.busy:
        ends |= {number: batch for number, batch in calm.step().streams.items() if batch.finish_reason}
    assert ends[1].finish_reason == "invalid" and ends[1].reason
    assert ends[2].finish_reason == "length"


def test_log_probabilities_of_a_prompt_are_those_of_its_generation(bundled: ServedModel, calm: Engine) -> None:
    sampling = Sampling(50, top_logprobs=3, ignore_eos=True)
    generated, logprobs = list[int](), list[TokenLogprobs]()
    calm.add(Add(1, EngineRequest(REPEATED, sampling)))
    while calm.busy:
        for batch in calm.step().streams.values():
            generated, logprobs = generated + batch.ids, logprobs + batch.logprobs
    small_steps = engine(bundled, max_num_batched_tokens=48)
    small_steps.add(Add(1, EngineRequest(REPEATED, Sampling(1))))  # the prefix cache must not swallow any
    reported: list[TokenLogprobs] = []
    small_steps.add(Add(2, EngineRequest(REPEATED + generated, Sampling(1, top_logprobs=3), prompt_logprobs=True)))
    while small_steps.busy:
        for batch in small_steps.step().streams.values():
            reported += batch.prompt_logprobs
    assert len(reported) == len(REPEATED) + len(generated) - 1
    for ours, theirs in zip(reported[-len(generated) :], logprobs, strict=True):
        assert ours.chosen == pytest.approx(theirs.chosen, abs=0.3)
        assert ours.top[0][1] == pytest.approx(theirs.top[0][1], abs=0.3)


def test_the_largest_group_size_reaches_openvino(bundled: ServedModel) -> None:
    """A number would be passed on as a C long, which it does not fit into."""
    largest = engine(bundled, graphs=(Arithmetic(group_size=2**64 - 1),))
    assert undisturbed(largest, [1, 2, 3])


def test_a_text_goes_on_in_the_graph_for_its_steps_size(bundled: ServedModel) -> None:
    """Prompts go through one graph, single tokens through the other, and both use one KV cache."""
    exact = Arithmetic("f32")
    expected = undisturbed(engine(bundled, graphs=(exact,)), REPEATED)
    both = engine(bundled, graphs=(msgspec.structs.replace(exact, max_tokens=8), exact))
    assert undisturbed(both, REPEATED) == expected
    assert re.match(r"up to 8 tokens 43 FullyConnected .*; 43 FullyConnected ", both.warm_up())
