"""Makes a model of DeepSeek-R1-Distill-Qwen-1.5B's exact shape with random weights: its speed is the real model's.

Needs the `export` extra. The tokenizer is the bundled model's, so most of the vocabulary decodes to nothing.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from cluster.models.export import export_model
from cluster.models.folder import BUNDLED_FOLDER

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weight", default="int8")
    args = parser.parse_args()

    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        intermediate_size=8960,
        max_position_embeddings=131_072,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, bos_token_id=0, eos_token_id=1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent) as folder:
        model.save_pretrained(folder)
        for name in _TOKENIZER:
            shutil.copy(BUNDLED_FOLDER / name, folder)
        del model
        export_model(Path(folder), args.out, args.weight)


if __name__ == "__main__":
    main()
