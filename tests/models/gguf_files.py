"""Writes tiny GGUF files with random weights, and computes what their models answer. Needs the package `gguf`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from tokenizers import pre_tokenizers

HIDDEN, HEADS, KEY_HEADS, HEAD, INNER, LAYERS, CONTEXT = 64, 2, 1, 32, 96, 2, 128
BASE, EPSILON = 10_000.0, 1e-5
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["h i", "Ġ t", "Ġt h"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*BYTES, *(merge.replace(" ", "") for merge in MERGES), *SPECIAL, "<think>", "</think>", "[PAD]"]
EOS, THINK = TOKENS.index("<|im_end|>"), TOKENS.index("<think>")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>"
TensorType = gguf.GGMLQuantizationType
Array = npt.NDArray[Any]


@dataclass
class TinyModel:
    """architecture: llama, qwen2 or qwen3. metadata: of the file, instead of the usual. divisors: rope_freqs.weight."""

    architecture: str = "qwen2"
    type: gguf.GGMLQuantizationType = TensorType.F16
    metadata: Mapping[str, Any] = field(default_factory=dict)
    divisors: Array | None = None
    weights: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        chance = np.random.default_rng(0)
        keys = HEAD * KEY_HEADS

        def add(name: str, *shape: int) -> None:
            scale = 1 if len(shape) == 1 else 3 / shape[-1] ** 0.5
            weights: Array = (chance.standard_normal(shape) * scale).astype(np.float16).astype(np.float32)
            if name.endswith("norm.weight"):
                weights = 1 + weights / 8
            quantized = len(shape) == 2 and self.type != TensorType.F16
            self.weights[name] = (
                gguf.dequantize(gguf.quantize(weights, self.type), self.type).astype(np.float32)
                if quantized
                else weights.astype(np.float16).astype(np.float32)
            )

        add("token_embd.weight", len(TOKENS), HIDDEN)
        add("output_norm.weight", HIDDEN)
        add("output.weight", len(TOKENS), HIDDEN)
        for layer in (f"blk.{number}." for number in range(LAYERS)):
            add(f"{layer}attn_norm.weight", HIDDEN)
            add(f"{layer}ffn_norm.weight", HIDDEN)
            for part, rows, columns in (
                ("attn_q", HIDDEN, HIDDEN),
                ("attn_k", keys, HIDDEN),
                ("attn_v", keys, HIDDEN),
                ("attn_output", HIDDEN, HIDDEN),
                ("ffn_gate", INNER, HIDDEN),
                ("ffn_up", INNER, HIDDEN),
                ("ffn_down", HIDDEN, INNER),
            ):
                add(f"{layer}{part}.weight", rows, columns)
                if self.architecture == "qwen2" and part in ("attn_q", "attn_k", "attn_v"):
                    add(f"{layer}{part}.bias", rows)
            if self.architecture == "qwen3":
                add(f"{layer}attn_q_norm.weight", HEAD)
                add(f"{layer}attn_k_norm.weight", HEAD)

    def write(self, file: Path) -> Path:
        name = self.architecture
        writer = gguf.GGUFWriter(file, name)
        values: dict[str, Any] = {
            f"{name}.block_count": LAYERS,
            f"{name}.context_length": CONTEXT,
            f"{name}.embedding_length": HIDDEN,
            f"{name}.feed_forward_length": INNER,
            f"{name}.attention.head_count": HEADS,
            f"{name}.attention.head_count_kv": KEY_HEADS,
            f"{name}.attention.layer_norm_rms_epsilon": EPSILON,
            f"{name}.rope.freq_base": BASE,
            "general.file_type": 1 if self.type == TensorType.F16 else 7,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": TOKENS,
            "tokenizer.ggml.token_type": [1] * (len(TOKENS) - 6) + [3, 3, 3, 4, 4, 5],
            "tokenizer.ggml.merges": MERGES,
            "tokenizer.ggml.eos_token_id": EOS,
            "tokenizer.ggml.bos_token_id": EOS - 2,
            "tokenizer.chat_template": TEMPLATE,
            **self.metadata,
        }
        for key, value in values.items():
            if isinstance(value, list):
                writer.add_array(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            elif isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif value is not None:
                writer.add_float32(key, value)
        for key, weights in self.weights.items():
            if weights.ndim == 1:
                writer.add_tensor(key, weights)
            else:
                writer.add_tensor(key, gguf.quantize(self._as_stored(key, weights), self.type), raw_dtype=self.type)
        if self.divisors is not None:
            writer.add_tensor("rope_freqs.weight", self.divisors)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file

    def _as_stored(self, key: str, weights: Array) -> Array:
        """llama.cpp stores a Llama's queries and keys with the two halves of each head interleaved."""
        if self.architecture != "llama" or not key.endswith(("attn_q.weight", "attn_k.weight")):
            return weights
        return weights.reshape(-1, 2, HEAD // 2, HIDDEN).swapaxes(1, 2).reshape(weights.shape)

    def logits(self, ids: list[int], linear: float = 1.0) -> Array:
        """The logits at each position. linear: factor of linear position scaling."""
        weights = self.weights
        hidden = weights["token_embd.weight"][ids]
        frequencies = BASE ** (-np.arange(0, HEAD, 2) / HEAD) / linear
        if self.divisors is not None:
            frequencies = frequencies / self.divisors
        angles = np.tile(np.outer(np.arange(len(ids)), frequencies), 2)[:, None]

        def rotated(heads: Array) -> Array:
            half = np.concatenate([-heads[..., HEAD // 2 :], heads[..., : HEAD // 2]], -1)
            result: Array = heads * np.cos(angles) + half * np.sin(angles)
            return result

        for layer in (f"blk.{number}." for number in range(LAYERS)):
            normed = _norm(hidden, weights[f"{layer}attn_norm.weight"])
            q, k, v = (
                (normed @ weights[f"{layer}attn_{part}.weight"].T + weights.get(f"{layer}attn_{part}.bias", 0)).reshape(
                    len(ids), -1, HEAD
                )
                for part in "qkv"
            )
            if self.architecture == "qwen3":
                q = _norm(q, weights[f"{layer}attn_q_norm.weight"])
                k = _norm(k, weights[f"{layer}attn_k_norm.weight"])
            k, v = (np.repeat(part, HEADS // KEY_HEADS, axis=1) for part in (rotated(k), v))
            scores = np.einsum("ihd,jhd->hij", rotated(q), k) / HEAD**0.5
            scores = np.where(np.tri(len(ids), dtype=bool), scores, -np.inf)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            attended = np.einsum("hij,jhd->ihd", shares, v).reshape(len(ids), -1)
            hidden = hidden + attended @ weights[f"{layer}attn_output.weight"].T
            normed = _norm(hidden, weights[f"{layer}ffn_norm.weight"])
            gate = normed @ weights[f"{layer}ffn_gate.weight"].T
            inner = gate / (1 + np.exp(-gate)) * (normed @ weights[f"{layer}ffn_up.weight"].T)
            hidden = hidden + inner @ weights[f"{layer}ffn_down.weight"].T
        result: Array = _norm(hidden, weights["output_norm.weight"]) @ weights["output.weight"].T
        return result


def sentencepiece() -> dict[str, Any]:
    """The metadata of a SentencePiece tokenizer with as many tokens: bytes, and a few words."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "h", "i", "hi"]
    tokens += [f"[PAD{number}]" for number in range(len(TOKENS) - len(tokens))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": None,
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(number) for number in range(len(tokens))],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * 4, *[5] * (len(tokens) - 263)],
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.bos_token_id": 1,
    }


def _norm(values: Array, weight: Array) -> Array:
    result: Array = values / np.sqrt((values**2).mean(-1, keepdims=True) + EPSILON) * weight
    return result
