"""Random-weight models with the architecture of a catalog model: their speed is real, their text is gibberish."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cluster.models.export import Compression, ExportError, check_export_extra, export_model
from cluster.models.folder import BUNDLED_FOLDER
from cluster.private_files import parent_folder

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_QWEN3 = {"head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151_936, "tie_word_embeddings": True}
_PHI4 = {
    "model_type": "phi3",
    "hidden_size": 3072,
    "num_hidden_layers": 32,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 200_064,
    "max_position_embeddings": 131_072,
    "partial_rotary_factor": 0.75,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
_SHAPES: dict[str, dict[str, Any]] = {
    # From each model's published config.json.
    "deepseek-r1-distill-qwen-1.5b": {
        "model_type": "qwen2",
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151_936,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": False,
    },
    "deepseek-r1-distill-qwen-7b": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18_944,
        "vocab_size": 152_064,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": False,
    },
    "phi-3-mini": {
        "model_type": "phi3",
        "hidden_size": 3072,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 8192,
        "vocab_size": 32_064,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    },
    "tinyllama-1.1b": {
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "intermediate_size": 5632,
        "vocab_size": 32_000,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
    "qwen3-0.6b": _QWEN3
    | {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "intermediate_size": 3072,
        "max_position_embeddings": 40_960,
    },
    "qwen3-1.7b": _QWEN3
    | {
        "model_type": "qwen3",
        "hidden_size": 2048,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "intermediate_size": 6144,
        "max_position_embeddings": 40_960,
    },
    "qwen3-4b": _QWEN3
    | {
        "model_type": "qwen3",
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "intermediate_size": 9728,
        "max_position_embeddings": 40_960,
    },
    "qwen3-8b": _QWEN3
    | {
        "model_type": "qwen3",
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "intermediate_size": 12_288,
        "max_position_embeddings": 40_960,
        "tie_word_embeddings": False,
    },
    "deepseek-r1-distill-llama-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14_336,
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": False,
    },
    "phi-4-mini": _PHI4,
    "phi-4-mini-reasoning": _PHI4,
    "smollm3-3b": {
        "model_type": "smollm3",
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "intermediate_size": 11_008,
        "vocab_size": 128_256,
        "max_position_embeddings": 65_536,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    },
}


def make_random(target: Path, like: str, compression: Compression, **overrides: int) -> None:
    """Writes an OpenVINO model with the architecture of a catalog model and the bundled model's tokenizer.

    It generates only words, so that a client sees every token as it arrives. overrides: fields of config.json, for
    tests. Raises ExportError: without the extra `export`, or for a model whose architecture is not listed here;
    NotPrivate where another user may change what is beside the target.
    """
    if like not in _SHAPES:
        raise ExportError(f"unknown architecture {like!r}; known are {', '.join(_SHAPES)}")
    if target.exists() or target.is_symlink():
        raise ExportError(f"{target} already exists; remove it or choose another name")
    parent = parent_folder(target.parent)
    check_export_extra()
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig

    shape = _SHAPES[like] | {"bos_token_id": 0, "eos_token_id": 1} | overrides
    config = CONFIG_MAPPING[shape.pop("model_type")](**shape)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    _generate_words_only(model)
    model.generation_config = GenerationConfig(do_sample=False, bos_token_id=0, eos_token_id=1)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=parent) as folder:
        model.save_pretrained(folder)
        for name in _TOKENIZER_FILES:
            shutil.copy(BUNDLED_FOLDER / name, folder)
        del model
        export_model(Path(folder), target, compression, origin={"source": f"random weights, shaped like {like}"})


def _generate_words_only(model: Any) -> None:
    """Rules out all other tokens: their logits are 0, and the highest of so many other logits is always above."""
    import torch

    tokenizer = Tokenizer.from_file(str(BUNDLED_FOLDER / "tokenizer.json"))
    words = [token for token in range(tokenizer.get_vocab_size()) if tokenizer.decode([token]).strip().isalpha()]
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        mask = torch.zeros(len(head), 1, dtype=head.dtype)
        mask[[token for token in words if token < len(head)]] = 1
        head *= mask
