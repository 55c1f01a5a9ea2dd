"""Describes a GGUF file's model as Dray's model folders do: its architecture, and the files beside the weights."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.models.gguf.header import GgufError, Header, TensorInfo
from cluster.models.gguf.tokenizer import build_tokenizer, stop_ids, token_id

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_MAX_LAYERS = 1024
_ROPE_FACTORS = "rope_freqs.weight"
_LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
_SAMPLING: dict[str, tuple[str, Callable[[float], float]]] = {
    "temp": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "min_p": ("min_p", float),
    "penalty_repeat": ("repetition_penalty", float),
}
"""What newer files recommend, and the names of generation_config.json."""


def write_description(header: Header, folder: Path) -> None:
    """Writes config.json, generation_config.json, tokenizer.json and tokenizer_config.json. Raises GgufError."""
    tokenizer = build_tokenizer(header)
    tokens, stops, bos = header.texts("tokenizer.ggml.tokens"), stop_ids(header), token_id(header, "bos")
    config = model_config(header) | {"bos_token_id": bos, "eos_token_id": stops[0]}
    special = {"eos_token": tokens[stops[0]]} | ({"bos_token": tokens[bos]} if bos is not None else {})
    # Named by its class, transformers would build a tokenizer of that class, whatever tokenizer.json says.
    tokenizer_config = special | {
        "tokenizer_class": "TokenizersBackend",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
    }
    if "tokenizer.chat_template" in header.metadata:
        tokenizer_config["chat_template"] = header.text("tokenizer.chat_template")
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", {"eos_token_id": stops} | _sampling(header))
    _write(folder / "tokenizer_config.json", tokenizer_config)
    tokenizer.save(str(folder / "tokenizer.json"))


def model_config(header: Header) -> dict[str, Any]:
    """The model's sizes, as config.json has them. Raises GgufError for a model that cannot be converted."""
    architecture = header.text("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise GgufError(f"its architecture is {architecture!r}; supported are {', '.join(_ARCHITECTURES)}")
    if header.integer("split.count", 1) > 1:
        raise GgufError("it is one part of a model in several files; join them first (llama-gguf-split --merge)")
    if header.integer(f"{architecture}.expert_count", 0):
        raise GgufError("it is a mixture of experts, which cannot be converted")
    header.integer("general.file_type")
    heads = header.integer(f"{architecture}.attention.head_count")
    hidden = header.integer(f"{architecture}.embedding_length")
    layers = header.integer(f"{architecture}.block_count")
    if not 0 < layers <= _MAX_LAYERS or not heads or not hidden:
        raise GgufError(f"it has {layers} layers, {heads} heads and {hidden} hidden units")
    head_size = header.integer(f"{architecture}.attention.key_length", hidden // heads)
    base = header.number(f"{architecture}.rope.freq_base", 10_000.0)
    if not head_size or head_size % 2 or base <= 0:
        raise GgufError(f"it has heads of {head_size} units, with rotary frequencies of the base {base}")
    rotated = header.integer(f"{architecture}.rope.dimension_count", head_size)
    if rotated != head_size or header.integer(f"{architecture}.attention.value_length", head_size) != head_size:
        raise GgufError(f"its heads of size {head_size} are rotated in part, or their keys and values differ in size")
    vocabulary = len(header.texts("tokenizer.ggml.tokens"))
    _check_tensors(header, layers, (hidden, vocabulary))
    return {
        "architectures": [_ARCHITECTURES[architecture]],
        "model_type": architecture,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": header.integer(f"{architecture}.feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": header.integer(f"{architecture}.attention.head_count_kv", heads),
        "head_dim": head_size,
        "max_position_embeddings": header.integer(f"{architecture}.context_length"),
        "rms_norm_eps": header.number(f"{architecture}.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_type": "default", "rope_theta": base},
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }


def rotary_frequencies(header: Header, file: Path) -> list[float]:
    """By how much each pair of a head's units is rotated from one position to the next, in radians.

    Raises GgufError for positions scaled in a way that is not supported, and OSError.
    """
    architecture = header.text("general.architecture")
    config = model_config(header)
    pairs = config["head_dim"] // 2
    frequencies = config["rope_parameters"]["rope_theta"] ** (-np.arange(pairs) / pairs)
    kind = header.text(f"{architecture}.rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise GgufError(f"it scales its positions by {kind!r}; supported are 'linear' and Llama 3's way")
    if kind == "linear":
        frequencies /= header.number(f"{architecture}.rope.scaling.factor", 1.0) or 1.0
    if tensor := header.tensors.get(_ROPE_FACTORS):  # Llama 3's way
        if tensor.type.name != "F32" or tensor.shape != (pairs,):
            raise GgufError(f"{_ROPE_FACTORS} has the shape {tensor.shape} of {tensor.type.name}, not {pairs} of F32")
        factors = np.fromfile(file, np.dtype("<f4"), count=pairs, offset=tensor.offset)
        frequencies /= np.where(factors > 0, factors, np.nan)
    if not (np.isfinite(frequencies) & (frequencies > 0)).all():
        raise GgufError("its rotary frequencies are not above 0")
    return [float(frequency) for frequency in frequencies]


def _check_tensors(header: Header, layers: int, embedding: Sequence[int]) -> None:
    needed = ["token_embd", "output_norm", *(f"blk.{layer}.{part}" for layer in range(layers) for part in _LAYER)]
    if missing := [name for name in needed if f"{name}.weight" not in header.tensors]:
        raise GgufError(f"it lacks {missing[0]}.weight and {len(missing) - 1} other tensors")
    if wide := [name for name in needed if _is_matrix(header.tensors[f"{name}.weight"], "F32")]:
        raise GgufError(f"{wide[0]}.weight has 32-bit numbers; convert the file to F16, Q8_0 or Q4_0 (llama-quantize)")
    if (shape := header.tensors["token_embd.weight"].shape) != tuple(embedding):
        raise GgufError(f"token_embd.weight has the shape {shape}; its metadata wants {tuple(embedding)}")


def _is_matrix(tensor: TensorInfo, type_name: str) -> bool:
    return len(tensor.shape) > 1 and tensor.type.name == type_name


def _sampling(header: Header) -> dict[str, Any]:
    """The recommended sampling parameters; without a temperature, the model answers greedily."""
    values = {
        name: convert(header.number(f"general.sampling.{key}"))
        for key, (name, convert) in _SAMPLING.items()
        if f"general.sampling.{key}" in header.metadata
    }
    return values | {"do_sample": bool(values.get("temperature"))}


def _write(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n")
