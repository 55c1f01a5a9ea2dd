"""The engine's greedy texts are those of transformers' `generate` over the same OpenVINO model, computed by
optimum-intel.

Needs the extra `export`: `make test-export`. With a real model too: DRAY_TEST_MODEL names its folder.
"""

import os
import random
from pathlib import Path

import msgspec
import pytest

from cluster.models.folder import ServedModel, open_model
from cluster.settings import ModelSettings, default_models_dir
from deployments.common.messages import Add, EngineRequest, Sampling
from deployments.common.types import GenerationRequest, Message
from deployments.engine.engine import Engine
from deployments.engine.model import config_for
from deployments.generation.prompts import PromptRenderer

optimum = pytest.importorskip("optimum.intel", reason="needs the extra `export`")

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
DOCS = Path(__file__).parents[2]
REAL_QUESTIONS = (
    *(
        "What is the capital of France?",
        "Write three sentences about the sea.",
        "Name the planets of our system.",
    ),
    *("请用三句话介绍一下北京。", "一个笼子里有鸡和兔子共35只,脚共94只,问各有多少?", "把“我喜欢读书”翻译成英文。"),
    *("Explain 👩‍🚀🚀 and 🐰🐔 in one sentence.", "给我讲一个关于🐱和🐶的小故事。"),
)
LONG = (("README.md", 6000), ("README.zh.md", 2500), ("docs/concepts/request.md", 5000))
"""Real texts, English and Chinese, of 1,000 to 2,000 tokens."""


def sums(count: int) -> list[str]:
    """Questions in English and Chinese, some after a long text, many with a common start."""
    chance, questions = random.Random(0), []
    for number in range(count):
        first, second = chance.randrange(1000), chance.randrange(1000)
        question = (f"What is {first} + {second}?", f"{first} 乘以 {second} 是多少？", f"鸡兔共{first}只")[number % 3]
        questions.append("The sum of the parts is the whole. " * chance.choice((0, 0, 3, 40)) + question)
    return questions


def texts_of_everyday() -> list[str]:
    """English, Chinese and emoji, short and long; the long ones come twice with different ends."""
    long = [(DOCS / name).read_text()[:characters] for name, characters in LONG]
    return [*REAL_QUESTIONS, *(f"{text}\n\n{end}" for text in long for end in ("Summarize this.", "用一句话总结。"))]


def generated(engine: Engine, prompts: list[list[int]], tokens: int) -> tuple[list[list[int]], int]:
    """The completions of all prompts together, and how many tokens of the prompts were cached."""
    texts: list[list[int]] = [[] for _ in prompts]
    cached = 0
    for number, prompt in enumerate(prompts):
        engine.add(Add(number, EngineRequest(prompt, Sampling(tokens))))
    while engine.busy:
        for number, batch in engine.step().streams.items():
            texts[number] += batch.ids
            cached += batch.cached_tokens
    return texts, cached


def check_texts(model: ServedModel, questions: list[str], tokens: int) -> None:
    import torch

    renderer = PromptRenderer(model)
    prompts = [
        renderer.render(GenerationRequest((Message("user", question),), Sampling(1))).ids for question in questions
    ]
    reference = optimum.OVModelForCausalLM.from_pretrained(model.folder, ov_config=EXACT, device="CPU")
    config = config_for(model, tuple(sorted(os.sched_getaffinity(0))))
    engine = Engine(msgspec.structs.replace(config, kv_cache_mb=1024), EXACT)
    texts, _ = generated(engine, prompts, tokens)
    different = []
    for question, prompt, text in zip(questions, prompts, texts, strict=True):
        made = reference.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False)
        if made[0, len(prompt) :].tolist() != text:
            different.append(question[-40:])
    assert not different, f"{len(different)} of {len(questions)}"
    # Now all but the last block of each prompt is cached, and the earlier completions are a source of guesses.
    before = engine.load
    again, cached = generated(engine, prompts, tokens)
    assert again == texts
    assert cached > sum(map(len, prompts)) * 0.5
    for prompt, text in list(zip(prompts, texts, strict=True))[:4]:  # few streams have time for guesses
        assert generated(engine, [prompt], tokens)[0] == [text]
    assert engine.load.accepted_tokens > before.accepted_tokens


def test_greedy_texts_are_those_of_transformers(bundled: ServedModel) -> None:
    check_texts(bundled, sums(200), 60)


@pytest.mark.skipif("DRAY_TEST_MODEL" not in os.environ, reason="DRAY_TEST_MODEL names no folder of a real model")
def test_greedy_texts_of_a_real_model_are_those_of_transformers() -> None:
    real = open_model(ModelSettings(source=os.environ["DRAY_TEST_MODEL"]), default_models_dir())
    check_texts(real, texts_of_everyday(), 40)
