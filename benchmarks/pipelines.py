"""OpenVINO GenAI's pipelines as Dray's engines make them, but for what a benchmark changes."""

import os
from typing import Any

import numpy

from cluster.models.folder import ServedModel

_KV_BLOCKS = 2000


def pipeline(
    model: ServedModel, *, scheduler: dict[str, Any] | None = None, properties: dict[str, Any] | None = None
) -> Any:
    """On all cores. scheduler, properties: what is set otherwise than in an engine."""
    import openvino_genai

    cores = len(os.sched_getaffinity(0))
    config = openvino_genai.SchedulerConfig()
    chosen = {
        "num_kv_blocks": _KV_BLOCKS,
        "max_num_seqs": model.settings.max_running,
        "max_num_batched_tokens": model.settings.max_batched_tokens,
        "dynamic_split_fuse": True,
        "enable_prefix_caching": True,
    }
    for name, value in (chosen | (scheduler or {})).items():
        setattr(config, name, value)
    given = {
        "INFERENCE_NUM_THREADS": cores,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": model.settings.dynamic_quantization_group_size,
        "sampler_num_threads": cores,
    }
    return openvino_genai.ContinuousBatchingPipeline(str(model.folder), config, "CPU", given | (properties or {}))


def add(made: Any, number: int, prompt: list[int], tokens: int, **settings: Any) -> Any:
    """Has it begin a greedy answer; gives its handle. settings: of its GenerationConfig."""
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
    """The tokens that have come since the last call."""
    ids: list[int] = []
    while handle.can_read():
        for output in handle.read().values():
            ids += output.generated_ids
    return ids
