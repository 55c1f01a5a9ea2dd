"""OpenVINO GenAI pipelines, set up like Dray's engines except for what a benchmark changes."""

import os
from typing import Any

import numpy

from cluster.models.folder import ServedModel
from deployments.engine.pipeline import config_for, make_pipeline

_KV_BLOCKS = 2000


def pipeline(model: ServedModel, **otherwise: dict[str, Any]) -> Any:
    """A pipeline on all cores. otherwise: `scheduler` settings and `properties` that differ from an engine's."""
    return make_pipeline(config_for(model, tuple(os.sched_getaffinity(0))), _KV_BLOCKS, **otherwise)


def add(made: Any, number: int, prompt: list[int], tokens: int, **settings: Any) -> Any:
    """Starts a greedy answer and returns its handle. settings: for its GenerationConfig."""
    import openvino
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.apply_chat_template = False
    config.do_sample = False
    config.max_new_tokens = tokens
    for name, value in settings.items():
        setattr(config, name, value)
    return made.add_request(number, openvino.Tensor(numpy.array([prompt], dtype=numpy.int64)), config)


def read(handle: Any) -> list[int]:
    """The tokens generated since the last call."""
    ids: list[int] = []
    while handle.can_read():
        for output in handle.read().values():
            ids += output.generated_ids
    return ids


def run(made: Any) -> int:
    """Runs steps until all answers are complete; returns the number of steps."""
    steps = 0
    while made.has_non_finished_requests():
        made.step()
        steps += 1
    return steps
