"""OpenVINO GenAI's continuous-batching pipeline, the peer of Dray's engine: with the same model, cores and KV cache."""

import os
from typing import Any

import numpy

from cluster.models.folder import ServedModel
from cluster.tuning.kept import engine_choice
from cluster.tuning.variants import format_here

_KV_BLOCKS = 2000


class Pipeline:
    """A pipeline on all cores, used like Dray's engine. Needs the package openvino-genai (extra `bench`)."""

    def __init__(self, model: ServedModel) -> None:
        import openvino_genai

        settings = model.settings
        threads = len(os.sched_getaffinity(0))
        choice = engine_choice(model, threads)
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.num_kv_blocks = _KV_BLOCKS
        scheduler.max_num_seqs = settings.max_num_seqs
        scheduler.max_num_batched_tokens = choice.step_tokens
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = True
        properties = {
            "INFERENCE_NUM_THREADS": threads,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(choice.variant.group_size),
            **({} if (number := format_here(choice.variant)) == "auto" else {"INFERENCE_PRECISION_HINT": number}),
            "sampler_num_threads": threads,
        }
        self._genai = openvino_genai
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(model.folder), scheduler, "CPU", properties)
        self._handles: dict[int, Any] = {}

    def add(self, number: int, prompt: list[int], tokens: int) -> None:
        """Starts a greedy completion of exactly this length."""
        import openvino

        config = self._genai.GenerationConfig()
        config.apply_chat_template = False
        config.do_sample = False
        config.ignore_eos = True
        config.max_new_tokens = tokens
        ids = openvino.Tensor(numpy.array([prompt], dtype=numpy.int64))
        self._handles[number] = self._pipeline.add_request(number, ids, config)

    def step(self) -> dict[int, list[int]]:
        """Runs a step; returns the new tokens of each stream."""
        self._pipeline.step()
        generated = {number: _read(handle) for number, handle in self._handles.items()}
        for number, handle in list(self._handles.items()):
            if handle.get_status() != self._genai.GenerationStatus.RUNNING and not handle.can_read():
                del self._handles[number]
        return {number: ids for number, ids in generated.items() if ids}

    @property
    def busy(self) -> bool:
        return bool(self._pipeline.has_non_finished_requests())

    def end(self) -> None:
        """Ends all streams."""
        for handle in self._handles.values():
            handle.cancel()
        self._handles.clear()
        while self.busy:
            self._pipeline.step()


def _read(handle: Any) -> list[int]:
    ids: list[int] = []
    while handle.can_read():
        for output in handle.read().values():
            ids += output.generated_ids
    return ids
