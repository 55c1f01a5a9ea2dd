"""The language model: OpenVINO IR compiled as one graph with paged attention, and a forward pass over a batch.

OpenVINO is imported inside the functions: affinity must be set before it loads, because it counts its threads then.
"""

import ctypes
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from cluster.models.folder import ServedModel
from cluster.tuning.kept import engine_choice
from cluster.tuning.variants import Variant, format_here
from deployments.common.messages import EngineConfig
from deployments.common.prefix import BLOCK_TOKENS
from deployments.engine.kernels import in_words, multiplications

_MADV_DONTNEED = 4
_WEIGHTS_FILE = "openvino_model.bin"
_LOGIT_ROWS = "logit_rows"
_CACHES = ("key_cache", "value_cache")


def config_for(
    model: ServedModel, cpus: tuple[int, ...], *, isolate_prefixes: bool = False, data_dir: Path | None = None
) -> EngineConfig:
    """The configuration of an engine process for this model on these logical CPUs.

    data_dir: where it may be kept what was measured here; None looks only into the model's folder.
    """
    settings = model.settings
    choice = engine_choice(model, len(cpus), data_dir)
    config = EngineConfig(
        model_dir=str(model.folder),
        cpus=cpus,
        kv_cache_mb=settings.kv_cache_mb,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=choice.step_tokens,
        dynamic_quantization_group_size=choice.variant.group_size,
        decode_slowdown=settings.decode_slowdown,
        guess_tokens=settings.guess_tokens,
        isolate_prefixes=isolate_prefixes,
    )
    return with_variant(config, choice.variant)


def with_variant(config: EngineConfig, variant: Variant) -> EngineConfig:
    """The configuration with another way to multiply."""
    return msgspec.structs.replace(
        config,
        inference_precision=format_here(variant),
        dynamic_quantization_group_size=variant.group_size,
        variant=variant.name,
    )


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a forward pass computes of one sequence.

    tokens: to compute. past: tokens before them, whose keys and values are in the KV cache. table: the sequence's KV
    blocks in order, with room for `tokens`. rows: how many of the last tokens get logits.
    """

    tokens: Sequence[int]
    past: int
    table: Sequence[int]
    rows: int


class PagedModel:
    """The compiled graph and its KV cache.

    blocks: number of KV blocks, each of BLOCK_TOKENS tokens. vocabulary: number of token ids.
    """

    def __init__(self, config: EngineConfig, properties: Mapping[str, Any] = MappingProxyType({})) -> None:
        """properties: of OpenVINO's CPU plugin; they override those that Dray sets.

        Raises RuntimeError or OSError for a model that cannot be read or compiled.
        """
        import openvino

        self._tensor = openvino.Tensor
        folder = Path(config.model_dir)
        self.vocabulary = int(json.loads((folder / "config.json").read_text())["vocab_size"])
        defaults = {
            "INFERENCE_NUM_THREADS": len(config.cpus),
            # As text: properties go to the plugin as C longs, and a group may be as large as 2**64 - 1.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(config.dynamic_quantization_group_size),
            # Kernels that were prepared for a number of tokens, of which steps have many: 5,000 took 350 MiB.
            "CPU_RUNTIME_CACHE_CAPACITY": "200",
        }
        if config.inference_precision != "auto":
            defaults["INFERENCE_PRECISION_HINT"] = config.inference_precision
        core = openvino.Core()
        compiled = core.compile_model(_paged_graph(core, folder), "CPU", {**defaults, **properties})
        self._request = compiled.create_infer_request()
        caches = [port for port in compiled.inputs if port.any_name.startswith(_CACHES)]
        # The plugin has chosen the type and the shape of a block; their number is ours.
        block_bytes = sum(
            port.element_type.size * int(np.prod([size.get_length() for size in list(port.partial_shape)[1:]]))
            for port in caches
        )
        self.blocks = max(1, config.kv_cache_mb * 2**20 // block_bytes)
        for port in caches:
            shape = [self.blocks, *(size.get_length() for size in list(port.partial_shape)[1:])]
            self._request.set_tensor(port, openvino.Tensor(port.element_type, openvino.Shape(shape)))
        self._inputs: dict[str, npt.NDArray[Any]] = {}
        """The memory of the input tensors, which do not own it."""

    def forward(self, chunks: Sequence[Chunk]) -> npt.NDArray[np.float32]:
        """Computes these tokens, writes their keys and values into the KV cache, and returns the logits.

        Shape [rows of all chunks, vocabulary]. The array is valid until the next call, and may be written to.
        """
        lengths = [len(chunk.tokens) for chunk in chunks]
        ends = list(accumulate(lengths))
        used = [-(-(chunk.past + length) // BLOCK_TOKENS) for chunk, length in zip(chunks, lengths, strict=True)]
        ids = [token for chunk in chunks for token in chunk.tokens]
        positions = [
            position
            for chunk, length in zip(chunks, lengths, strict=True)
            for position in range(chunk.past, chunk.past + length)
        ]
        rows = [row for chunk, end in zip(chunks, ends, strict=True) for row in range(end - chunk.rows, end)]
        self._set("input_ids", ids, np.int64)
        self._set("position_ids", positions, np.int64)
        self._set("past_lens", [chunk.past for chunk in chunks], np.int32)
        self._set("subsequence_begins", [0, *ends], np.int32)
        self._set(
            "block_indices",
            [block for chunk, blocks in zip(chunks, used, strict=True) for block in chunk.table[:blocks]],
            np.int32,
        )
        self._set("block_indices_begins", [0, *accumulate(used)], np.int32)
        self._set("max_context_len", max(chunk.past + len(chunk.tokens) for chunk in chunks), np.int32)
        # No rows at all would be an empty multiplication.
        self._set(_LOGIT_ROWS, rows or [0], np.int64)
        self._request.infer()
        logits: npt.NDArray[np.float32] = self._request.get_output_tensor(0).data
        return logits.reshape(-1, self.vocabulary)[: len(rows)]

    @property
    def multiplications(self) -> str:
        """How the compiled graph multiplies by weights, after a forward pass, since only that chooses the kernels."""
        return in_words(multiplications(self._request.get_compiled_model().get_runtime_model()))

    def _set(self, name: str, values: list[int] | int, kind: type[np.generic]) -> None:
        array = np.array(values, kind)
        known = self._inputs.get(name)
        # A new tensor takes as long as all else that a small step does in Python.
        if known is not None and known.shape == array.shape:
            known[...] = array
        else:
            self._inputs[name] = array
            self._request.set_tensor(name, self._tensor(array, shared_memory=True))


def _paged_graph(core: Any, folder: Path) -> Any:
    """The model with paged attention, and with logits only of the rows that are asked for."""
    from openvino import opset13
    from openvino._offline_transformations import paged_attention_transformation

    model = core.read_model(folder / "openvino_model.xml")
    paged_attention_transformation(model)
    # Logits of a whole prompt would cost as much as several layers. The input of the last multiplication has the shape
    # [tokens, 1, hidden size].
    node = model.get_results()[0].input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    rows = opset13.parameter([-1], np.int64, name=_LOGIT_ROWS)
    rows.output(0).get_tensor().set_names({_LOGIT_ROWS})
    axis = opset13.constant(0, dtype=np.int64)
    node.input(0).replace_source_output(opset13.gather(node.input_value(0), rows, axis).output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()
    return model


def stop_token_ids(model_dir: Path) -> set[int]:
    """Token ids that end a completion: from generation_config.json, else from config.json."""
    file = model_dir / "generation_config.json"
    model = json.loads((model_dir / "config.json").read_text())
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
