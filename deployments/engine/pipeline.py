"""OpenVINO GenAI's continuous-batching pipeline: how it is created and configured.

OpenVINO is imported inside the functions: affinity must be set before it loads, because it counts its threads then.
"""

import ctypes
import json
import secrets
from collections.abc import Mapping, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cluster.models.folder import ServedModel
from deployments.common.messages import EngineConfig, Sampling
from deployments.common.prefix import BLOCK_TOKENS

_MADV_DONTNEED = 4
_WEIGHTS_FILE = "openvino_model.bin"


def config_for(model: ServedModel, cpus: tuple[int, ...]) -> EngineConfig:
    """The configuration of an engine process for this model on these logical CPUs."""
    settings = model.settings
    return EngineConfig(
        model_dir=str(model.folder),
        cpus=cpus,
        kv_cache_mb=settings.kv_cache_mb,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        dynamic_quantization_group_size=settings.dynamic_quantization_group_size,
    )


def kv_bytes_per_token(config: dict[str, Any]) -> int:
    """Bytes of KV cache for one token. config: the model's config.json.

    The CPU plugin stores keys and values as u8. It adds 8 bytes of scale and zero point for each channel and block of
    keys, and for each token and head of values (openvino 2026.4).
    """
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    kv_heads = config.get("num_key_value_heads") or heads
    per_head = 2 * head_size + 8 * head_size // BLOCK_TOKENS + 8
    return int(config["num_hidden_layers"] * kv_heads * per_head)


def make_pipeline(
    config: EngineConfig,
    blocks: int,
    scheduler: Mapping[str, Any] = MappingProxyType({}),
    properties: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """A continuous-batching pipeline. blocks: KV blocks. scheduler, properties: override the defaults set here."""
    import openvino_genai

    scheduler_config = openvino_genai.SchedulerConfig()
    scheduler_config.num_kv_blocks = blocks
    scheduler_config.max_num_seqs = config.max_num_seqs
    scheduler_config.max_num_batched_tokens = config.max_num_batched_tokens
    scheduler_config.dynamic_split_fuse = True
    scheduler_config.enable_prefix_caching = True
    for name, value in scheduler.items():
        setattr(scheduler_config, name, value)
    plugin_config = {
        "INFERENCE_NUM_THREADS": len(config.cpus),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": config.dynamic_quantization_group_size,
        # The sampler has its own thread pool, by default one thread for each core of the machine.
        "sampler_num_threads": len(config.cpus),
        **properties,
    }
    return openvino_genai.ContinuousBatchingPipeline(config.model_dir, scheduler_config, "CPU", plugin_config)


def generation_config(sampling: Sampling, stop_ids: Set[int]) -> Any:
    """The pipeline's configuration of a request. stop_ids: token ids that end a completion of this model."""
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.apply_chat_template = False
    config.max_new_tokens = sampling.max_tokens
    config.min_new_tokens = min(sampling.min_tokens, sampling.max_tokens)
    config.ignore_eos = sampling.ignore_eos
    # ignore_eos ignores the model's own stop tokens, but not those of the request.
    config.stop_token_ids = {*sampling.stop_ids, *(() if sampling.ignore_eos else stop_ids)}
    config.repetition_penalty = sampling.repetition_penalty
    config.frequency_penalty = sampling.frequency_penalty
    config.presence_penalty = sampling.presence_penalty
    config.logprobs = int(sampling.logprobs)
    config.do_sample = sampling.temperature > 0
    if config.do_sample:
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        config.min_p = sampling.min_p
        if sampling.top_k:
            config.top_k = sampling.top_k
        # The pipeline's default seed is constant, so every request would draw the same numbers.
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
        config.rng_seed = seed & (2**63 - 1)
    if sampling.grammar is not None:
        raise ValueError("this pipeline knows no grammars of llguidance")
    return config


def token_tensor(ids: list[int]) -> Any:
    """Token ids as the tensor that the pipeline takes, of shape [1, tokens]."""
    import numpy
    import openvino

    return openvino.Tensor(numpy.array([ids], dtype=numpy.int64))


def stop_token_ids(model_dir: Path, model: dict[str, Any]) -> set[int]:
    """Token ids that end a completion: from generation_config.json, else from config.json."""
    file = model_dir / "generation_config.json"
    ids = (json.loads(file.read_text()) if file.is_file() else {}).get("eos_token_id", model.get("eos_token_id"))
    return set(ids) if isinstance(ids, list) else {ids} if ids is not None else set()


def release_weights(model_dir: str) -> None:
    """Releases the pages of the mapped weight file. The first inference made a repacked copy (openvino 2026.4).

    The kernel loads pages again if they are read after all.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(f"{model_dir}/{_WEIGHTS_FILE}"):
            start, end = (int(number, 16) for number in line.split(" ", 1)[0].split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)
