"""The language model: OpenVINO IR compiled as one graph with paged attention, and a forward pass over a batch.

OpenVINO is imported inside the functions: affinity must be set before it loads, because it counts its threads then.
"""

import ctypes
import json
from collections.abc import Callable, Mapping, Sequence
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
from deployments.common.messages import Arithmetic, EngineConfig
from deployments.common.prefix import BLOCK_TOKENS
from deployments.engine.kernels import in_words, multiplications
from deployments.engine.quantized_inputs import quantize_inputs

_MADV_DONTNEED = 4
_WEIGHTS_FILE = "openvino_model.bin"
_LOGIT_ROWS = "logit_rows"
_CACHES = ("key_cache", "value_cache")
_LOOK_MS = 4
"""Between two questions whether an inference is to be ended."""


class Interrupted(Exception):
    """A forward pass was ended before its results were there. The same pass may be computed later."""


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
        decode_slowdown=settings.decode_slowdown,
        guess_tokens=settings.guess_tokens,
        isolate_prefixes=isolate_prefixes,
    )
    return with_variant(config, choice.variant)


def with_variant(config: EngineConfig, variant: Variant) -> EngineConfig:
    """The configuration with another way to multiply."""
    graphs = tuple(
        Arithmetic(format_here(part), part.group_size, part.max_tokens, part.quantized_inputs) for part in variant.parts
    )
    return msgspec.structs.replace(config, graphs=graphs, variant=variant.name)


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
    """The compiled graphs and their KV cache.

    blocks: number of KV blocks, each of BLOCK_TOKENS tokens. vocabulary: number of token ids.
    """

    def __init__(self, config: EngineConfig, properties: Mapping[str, Any] = MappingProxyType({})) -> None:
        """properties: of OpenVINO's CPU plugin; they override those that Dray sets.

        Raises RuntimeError or OSError for a model that cannot be read or compiled.
        """
        import openvino

        folder = Path(config.model_dir)
        self.vocabulary = int(json.loads((folder / "config.json").read_text())["vocab_size"])
        core = openvino.Core()
        common = {
            "INFERENCE_NUM_THREADS": len(config.cpus),
            # Kernels that were prepared for a number of tokens, of which steps have many: 5,000 took 350 MiB.
            "CPU_RUNTIME_CACHE_CAPACITY": "200",
            # Each number format has its own type of KV cache, and the graphs must share one.
            **({"KV_CACHE_PRECISION": "u8"} if len(config.graphs) > 1 else {}),
        }
        self._graphs = [_Graph(core, folder, each, {**common, **properties}) for each in config.graphs]
        # The plugin has chosen the type and the shape of a block; their number is ours.
        caches = self._graphs[0].caches
        block_bytes = sum(kind.size * int(np.prod(shape)) for kind, shape in caches.values())
        self.blocks = max(1, config.kv_cache_mb * 2**20 // block_bytes)
        for name, (kind, shape) in caches.items():
            tensor = openvino.Tensor(kind, openvino.Shape([self.blocks, *shape]))
            for graph in self._graphs:
                graph.set_cache(name, tensor)

    def forward(self, chunks: Sequence[Chunk], interrupt: Callable[[], bool] | None = None) -> npt.NDArray[np.float32]:
        """Computes these tokens, writes their keys and values into the KV cache, and returns the logits.

        Shape [rows of all chunks, vocabulary]. The array is valid until the next call, and may be written to.
        interrupt: asked every few milliseconds; when it is true, the pass ends within one operation of the graph and
        raises Interrupted.
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
        graph = next(graph for graph in self._graphs if graph.max_tokens is None or len(ids) <= graph.max_tokens)
        graph.set("input_ids", ids, np.int64)
        graph.set("position_ids", positions, np.int64)
        graph.set("past_lens", [chunk.past for chunk in chunks], np.int32)
        graph.set("subsequence_begins", [0, *ends], np.int32)
        graph.set(
            "block_indices",
            [block for chunk, blocks in zip(chunks, used, strict=True) for block in chunk.table[:blocks]],
            np.int32,
        )
        graph.set("block_indices_begins", [0, *accumulate(used)], np.int32)
        graph.set("max_context_len", max(chunk.past + len(chunk.tokens) for chunk in chunks), np.int32)
        # No rows at all would be an empty multiplication.
        graph.set(_LOGIT_ROWS, rows or [0], np.int64)
        return graph.infer(interrupt).reshape(-1, self.vocabulary)[: len(rows)]

    @property
    def multiplications(self) -> str:
        """How the compiled graphs multiply by weights, after each has computed, since only that chooses the kernels."""
        return "; ".join(
            graph.multiplications
            if graph.max_tokens is None
            else f"up to {graph.max_tokens} tokens {graph.multiplications}"
            for graph in self._graphs
        )


class _Graph:
    """A compiled graph with its input tensors.

    max_tokens: of a step that it computes; None: any number. caches: each key or value cache's type, and a block's
    shape.
    """

    def __init__(self, core: Any, folder: Path, arithmetic: Arithmetic, properties: Mapping[str, Any]) -> None:
        import openvino

        self._tensor = openvino.Tensor
        self.max_tokens = arithmetic.max_tokens
        own = {
            # As text: properties go to the plugin as C longs, and a group may be as large as 2**64 - 1.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(arithmetic.group_size),
            **({"INFERENCE_PRECISION_HINT": arithmetic.precision} if arithmetic.precision != "auto" else {}),
        }
        compiled = core.compile_model(_paged_graph(core, folder, arithmetic), "CPU", {**own, **properties})
        self._request = compiled.create_infer_request()
        self.caches = {
            port.any_name: (port.element_type, [size.get_length() for size in list(port.partial_shape)[1:]])
            for port in compiled.inputs
            if port.any_name.startswith(_CACHES)
        }
        self._inputs: dict[str, npt.NDArray[Any]] = {}
        """The memory of the input tensors, which do not own it."""

    def set_cache(self, name: str, tensor: Any) -> None:
        """Gives the graph a KV cache. Raises RuntimeError for another type or shape than its own."""
        self._request.set_tensor(name, tensor)

    def set(self, name: str, values: list[int] | int, kind: type[np.generic]) -> None:
        """Sets an input."""
        array = np.array(values, kind)
        known = self._inputs.get(name)
        # A new tensor takes as long as all else that a small step does in Python.
        if known is not None and known.shape == array.shape:
            known[...] = array
        else:
            self._inputs[name] = array
            self._request.set_tensor(name, self._tensor(array, shared_memory=True))

    def infer(self, interrupt: Callable[[], bool] | None) -> npt.NDArray[np.float32]:
        """The logits, in memory that the next inference writes to. Raises Interrupted."""
        if interrupt is None:
            self._request.infer()
        else:
            self._infer_until(interrupt)
        logits: npt.NDArray[np.float32] = self._request.get_output_tensor(0).data
        return logits

    def _infer_until(self, interrupt: Callable[[], bool]) -> None:
        cancelled = False
        self._request.start_async()
        try:
            while not self._request.wait_for(_LOOK_MS):
                if not cancelled and interrupt():
                    self._request.cancel()
                    cancelled = True
            self._request.wait()  # raises what went wrong
        except RuntimeError:
            if not cancelled:
                raise
            raise Interrupted from None

    @property
    def multiplications(self) -> str:
        return in_words(multiplications(self._request.get_compiled_model().get_runtime_model()))


def _paged_graph(core: Any, folder: Path, arithmetic: Arithmetic) -> Any:
    """The model with paged attention, and with logits only of the rows that are asked for."""
    from openvino import opset13
    from openvino._offline_transformations import paged_attention_transformation

    model = core.read_model(folder / "openvino_model.xml")
    if arithmetic.quantized_inputs:
        quantize_inputs(model, arithmetic.quantized_inputs)
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
