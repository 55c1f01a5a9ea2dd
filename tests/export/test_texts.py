"""The engine's greedy texts are those of transformers' `generate` over the same model, computed by optimum-intel.

Needs the extra `export`: `make test-export`.
"""

import os
import random

import pytest

from cluster.models.folder import ServedModel
from deployments.common.messages import Add, EngineRequest, Sampling
from deployments.common.types import GenerationRequest, Message
from deployments.engine.engine import Engine
from deployments.engine.model import config_for
from deployments.generation.prompts import PromptRenderer

optimum = pytest.importorskip("optimum.intel", reason="needs the extra `export`")

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
PROMPTS = 200
TOKENS = 60


def prompts(model: ServedModel) -> list[list[int]]:
    """Questions in English and Chinese, some after a long text, many with a common start."""
    chance, renderer = random.Random(0), PromptRenderer(model)
    rendered = []
    for number in range(PROMPTS):
        first, second = chance.randrange(1000), chance.randrange(1000)
        question = (f"What is {first} + {second}?", f"{first} 乘以 {second} 是多少？", f"鸡兔共{first}只")[number % 3]
        before = "The sum of the parts is the whole. " * chance.choice((0, 0, 3, 40))
        request = GenerationRequest((Message("user", before + question),), Sampling(1))
        rendered.append(renderer.render(request).ids)
    return rendered


def test_greedy_texts_are_those_of_transformers(bundled: ServedModel) -> None:
    import torch

    reference = optimum.OVModelForCausalLM.from_pretrained(bundled.folder, ov_config=EXACT, device="CPU")
    engine = Engine(config_for(bundled, tuple(sorted(os.sched_getaffinity(0)))), EXACT)
    texts: list[list[int]] = [[] for _ in range(PROMPTS)]
    all_prompts = prompts(bundled)
    for number, prompt in enumerate(all_prompts):
        engine.add(Add(number, EngineRequest(prompt, Sampling(TOKENS))))
    while engine.busy:
        for number, batch in engine.step().streams.items():
            texts[number] += batch.ids
    different = []
    for prompt, text in zip(all_prompts, texts, strict=True):
        made = reference.generate(torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False)
        if made[0, len(prompt) :].tolist() != text:
            different.append(prompt)
    assert not different, f"{len(different)} of {PROMPTS}"
