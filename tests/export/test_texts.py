"""The engine's greedy texts are those of transformers' `generate` over the same OpenVINO model, computed by
optimum-intel: of 200 prompts, for the bundled model and for SmolLM2-135M, a real one.

Needs the extra `export`: `make test-export`.
"""

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import msgspec
import pytest

from cluster.models.folder import ServedModel
from deployments.common.messages import Add, EngineRequest, Sampling
from deployments.common.types import GenerationRequest, Message
from deployments.engine.engine import Engine
from deployments.engine.model import config_for
from deployments.generation.prompts import PromptRenderer
from tests.models.smollm2 import smollm2

optimum = pytest.importorskip("optimum.intel", reason="needs the extra `export`")

# The reference takes minutes, and an hour where other work has the cores.
pytestmark = pytest.mark.timeout(7200)

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
PROMPTS = 200
DOCS = Path(__file__).parents[2]
LONG = (
    *("README.md", "docs/concepts/request.md", "docs/guides/batches.md", "docs/guides/tuning.md"),
    *("README.zh.md", "docs/guides/curated.zh.md", "docs/guides/chat.zh.md", "docs/guides/privacy.zh.md"),
)
"""Texts of which as much is taken as makes 500 to 2,000 tokens."""
ENDS = ("Summarize this.", "用一句话总结。", "What is it about?")
ASKED = (
    *("What is {}?", "Write three sentences about {}.", "Explain {} to a child.", "List five facts about {}."),
    *("{}是什么？", "请用三句话介绍{}。", "用一句话解释{}。", "把“我喜欢{}”翻译成英文。"),
)
ABOUT = (
    *(
        "the sea",
        "Paris",
        "a prime number",
        "photosynthesis",
        "the number 42",
        "Redis",
        "Shakespeare",
        "a 👩‍🚀 and a 🚀",
    ),
    *("北京", "春天", "量子力学", "茶", "长城", "人工智能", "🐱和🐶", "数据库", "鸡兔同笼"),
    *("music", "gravity", "the word “yes”", "C++", "the moon", "苹果", "汉字", "0"),
)


def sums() -> list[str]:
    """Questions in English and Chinese, some after a long text, many with a common start."""
    chance, questions = random.Random(0), []
    for number in range(PROMPTS):
        first, second = chance.randrange(1000), chance.randrange(1000)
        question = (f"What is {first} + {second}?", f"{first} 乘以 {second} 是多少？", f"鸡兔共{first}只")[number % 3]
        questions.append("The sum of the parts is the whole. " * chance.choice((0, 0, 3, 40)) + question)
    return questions


def everyday() -> list[str]:
    """English, Chinese and emoji, short and long; the long ones come three times with different ends."""
    texts = [(DOCS / name).read_text()[: 1200 if name.endswith(".zh.md") else 5000] for name in LONG]
    long = [f"{text}\n\n{end}" for text, end in product(texts, ENDS)]
    short = [asked.format(about) for about, asked in product(ABOUT, ASKED)]
    # Of the end too, where the Chinese ones are.
    return [*long, *random.Random(0).sample(short, PROMPTS - len(long))]


@dataclass
class Case:
    """A model, prompts, and what the reference makes of them. tokens: of a completion at most."""

    model: ServedModel
    tokens: int
    prompts: list[list[int]]
    completions: list[list[int]]

    @cached_property
    def engine(self) -> Engine:
        """An engine whose KV cache holds all of the texts."""
        return self.new_engine(1024)

    def new_engine(self, kv_cache_mb: int) -> Engine:
        config = config_for(self.model, tuple(sorted(os.sched_getaffinity(0))))
        return Engine(msgspec.structs.replace(config, kv_cache_mb=kv_cache_mb), EXACT)

    def requests(self) -> list[EngineRequest]:
        return [EngineRequest(prompt, Sampling(self.tokens)) for prompt in self.prompts]

    def different(self, texts: Sequence[list[int]]) -> list[int]:
        """The numbers of the prompts whose completions, from the first prompt on, are not the reference's."""
        return [number for number, text in enumerate(texts) if text != self.completions[number]]


@dataclass
class Generated:
    """Completions. cached: tokens of their prompts that were in the prefix cache. preempted: how often a text that had
    begun was without a place after a step."""

    texts: list[list[int]]
    cached: int = 0
    preempted: int = 0


def generate(engine: Engine, requests: Sequence[EngineRequest]) -> Generated:
    """Generates the completions of all requests together."""
    made = Generated([[] for _ in requests])
    open_ = set(range(len(requests)))
    for number, request in enumerate(requests):
        engine.add(Add(number, request))
    while engine.busy:
        for number, batch in engine.step().streams.items():
            made.texts[number] += batch.ids
            made.cached += batch.cached_tokens
            if batch.finish_reason:
                assert batch.finish_reason in ("stop", "length"), batch.finish_reason
                open_.remove(number)
        made.preempted += max(0, sum(bool(made.texts[number]) for number in open_) - engine.load.running)
    return made


def case_of(model: ServedModel, questions: Sequence[str], tokens: int) -> Case:
    import torch

    renderer = PromptRenderer(model)
    prompts = [
        renderer.render(GenerationRequest((Message("user", question),), Sampling(1))).ids for question in questions
    ]
    reference = optimum.OVModelForCausalLM.from_pretrained(model.folder, ov_config=EXACT, device="CPU")
    completions = []
    for prompt in prompts:
        made = reference.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False)
        completions.append(made[0, len(prompt) :].tolist())
    return Case(model, tokens, prompts, completions)


@pytest.fixture(scope="module", params=["bundled", "smollm2"])
def case(request: pytest.FixtureRequest, bundled: ServedModel) -> Iterator[Case]:
    yield case_of(bundled, sums(), 60) if request.param == "bundled" else case_of(smollm2(), everyday(), 32)


def test_texts_are_those_of_transformers_and_again_with_cached_prefixes(case: Case) -> None:
    first, again = generate(case.engine, case.requests()), generate(case.engine, case.requests())
    assert case.different(first.texts) == case.different(again.texts) == []
    assert again.cached > sum(map(len, case.prompts)) * 0.5


def test_texts_with_guesses_are_the_same(case: Case) -> None:
    """One at a time, as few streams have time for guesses; a second time its earlier completion is their source."""
    before = case.engine.load
    for prompt, completion in list(zip(case.requests(), case.completions, strict=True))[::5]:
        for _ in range(2):
            assert generate(case.engine, [prompt]).texts == [completion]
    assert case.engine.load.accepted_tokens - before.accepted_tokens > len(case.prompts)


def test_preempted_texts_are_the_same(case: Case) -> None:
    """The KV cache holds the longest text, and not many at once."""
    longest = max(map(len, case.prompts)) + case.tokens
    bytes_of_a_token = 2**30 / case.engine.kv_tokens
    small = case.new_engine(int(longest * bytes_of_a_token * 1.5 / 2**20) + 1)
    made = generate(small, case.requests())
    assert case.different(made.texts) == []
    assert made.preempted, "no text lost its place"


def test_texts_carried_on_elsewhere_are_the_same(case: Case) -> None:
    """Another engine goes on from any token, as after the death of the first."""
    chance = random.Random(1)
    begun = [completion[: chance.randrange(len(completion))] for completion in case.completions]
    carried_on = [
        EngineRequest(prompt + start, Sampling(case.tokens), generated_tokens=len(start))
        for prompt, start in zip(case.prompts, begun, strict=True)
    ]
    made = generate(case.new_engine(1024), carried_on)
    assert case.different([start + rest for start, rest in zip(begun, made.texts, strict=True)]) == []
