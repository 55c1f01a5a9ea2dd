"""Writes random Q8_0 weights of a model's shape for llama.cpp. Run it in an environment with `gguf`.

Like Dray's random models, they generate only words, so that clients see every token.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_ROWS = 4096
_SCALE = 0.02


def write(target: Path, model_dir: Path) -> None:
    """Writes the GGUF file for the config.json and tokenizer.json of a folder with a Qwen2 model."""
    config = json.loads((model_dir / "config.json").read_text())
    if config["model_type"] != "qwen2":
        raise SystemExit(f"only models of Qwen2's shape are compared, and {model_dir} is {config['model_type']}")
    writer = gguf.GGUFWriter(target, "qwen2")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    words = _add_tokenizer(writer, json.loads((model_dir / "tokenizer.json").read_text()), config["vocab_size"])
    _add_weights(writer, config, words)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], size: int) -> list[int]:
    """Adds the tokenizer; returns the ids of words."""
    tokens = [f"[unused{number}]" for number in range(size)]
    kinds = [gguf.TokenType.UNUSED] * size
    for token, number in tokenizer["model"]["vocab"].items():
        tokens[number], kinds[number] = token, gguf.TokenType.NORMAL
    words = [number for number in range(size) if kinds[number] == gguf.TokenType.NORMAL]
    for one in tokenizer["added_tokens"]:
        tokens[one["id"]], kinds[one["id"]] = one["content"], gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    return [number for number in words if tokens[number].lstrip("Ġ").isascii() and tokens[number].lstrip("Ġ").isalpha()]


def _add_weights(writer: gguf.GGUFWriter, config: dict[str, Any], words: list[int]) -> None:
    chance = np.random.default_rng(0)
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]

    def matrix(name: str, rows: int, columns: int, only: list[int] | None = None) -> None:
        parts = []
        for start in range(0, rows, _ROWS):
            part = chance.standard_normal((min(_ROWS, rows - start), columns), dtype=np.float32) * _SCALE
            if only is not None:
                part *= np.isin(np.arange(start, start + len(part)), only)[:, None]
            parts.append(gguf.quantize(part, gguf.GGMLQuantizationType.Q8_0))
        writer.add_tensor(name, np.concatenate(parts), raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    def vector(name: str, size: int, value: float) -> None:
        writer.add_tensor(name, np.full(size, value, dtype=np.float32))

    matrix("token_embd.weight", vocabulary, hidden)
    for number in range(config["num_hidden_layers"]):
        layer = f"blk.{number}"
        vector(f"{layer}.attn_norm.weight", hidden, 1)
        for part, rows in (("q", hidden), ("k", keys), ("v", keys)):
            matrix(f"{layer}.attn_{part}.weight", rows, hidden)
            vector(f"{layer}.attn_{part}.bias", rows, 0)
        matrix(f"{layer}.attn_output.weight", hidden, hidden)
        vector(f"{layer}.ffn_norm.weight", hidden, 1)
        matrix(f"{layer}.ffn_gate.weight", inner, hidden)
        matrix(f"{layer}.ffn_up.weight", inner, hidden)
        matrix(f"{layer}.ffn_down.weight", hidden, inner)
    vector("output_norm.weight", hidden, 1)
    matrix("output.weight", vocabulary, hidden, words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a Dray model with the shape to use")
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    write(args.file, args.model)


if __name__ == "__main__":
    main()
