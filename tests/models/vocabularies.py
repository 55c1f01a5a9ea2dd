"""Small tokenizers of each kind that models have, trained on a few sentences, in folders that a renderer can open."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordLevelTrainer, WordPieceTrainer

from cluster.models.folder import BUNDLED_FOLDER, ServedModel
from cluster.settings import ModelSettings
from tests.models.smollm2 import smollm2

TEXTS = [
    "A cage holds rabbits and chickens: 35 heads and 94 feet. How many of each are there?",
    "def add(left, right):\n    return left + right  # a sum\n",
    "一个笼子里有鸡和兔子共35只,脚共94只,问各有多少?",
    "the quick brown fox jumps over the lazy dog, user assistant system tool think",
] * 4
SPECIAL = ["<s>", "<|im_start|>", "<|im_end|>"]
"""Tokens that decoding drops."""
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
"""Tokens that decoding keeps."""
CHATML = (
    "{{ bos_token }}{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n{{ note }}<think>\n"
)


def byte_level() -> Tokenizer:
    """As Qwen, Llama 3 and SmolLM."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _with_tokens(tokenizer)


def byte_fallback() -> Tokenizer:
    """As Llama 2, TinyLlama and Phi-3: SentencePiece's BPE, whose unknown characters are written as bytes."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer = Tokenizer(BPE(**_model(tokenizer), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<unk>", normalized=False)])
    return _with_tokens(tokenizer)


def metaspace() -> Tokenizer:
    """As T5 and XLM-R: SentencePiece's unigrams, among which control tokens are pieces like others."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", *SPECIAL, *MARKS], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    plain = Tokenizer(Unigram([tuple(piece) for piece in pieces], 0, False))
    plain.normalizer, plain.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    plain.decoder = tokenizer.decoder
    return _with_tokens(plain)


def word_piece() -> Tokenizer:
    """As BERT."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", *SPECIAL, *MARKS], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _with_tokens(tokenizer)


def words() -> Tokenizer:
    """Whole words between spaces: control tokens are words of the vocabulary."""
    tokenizer = Tokenizer(WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = WordLevelTrainer(special_tokens=["[UNK]", *SPECIAL, *MARKS], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _with_tokens(tokenizer)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-fallback": byte_fallback,
    "metaspace": metaspace,
    "wordpiece": word_piece,
    "words": words,
}


def model_with(folder: Path, tokenizer: Tokenizer, template: str = CHATML, **config: Any) -> ServedModel:
    """A model folder that has a tokenizer and no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return model_of(folder, template, **{"bos_token": "<s>", "eos_token": "<|im_end|>"} | config)


def model_of(folder: Path, template: str, **config: Any) -> ServedModel:
    """The model of a folder that has a tokenizer.json, with this template."""
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    return opened(folder)


def opened(folder: Path) -> ServedModel:
    """The model of a folder that has a tokenizer, and perhaps nothing else."""
    return ServedModel(ModelSettings(source=str(folder)), "model", folder, 100_000, 0)


def copied(source: Path, folder: Path) -> Path:
    """The folder, with another's tokenizer and chat template."""
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (source / file).is_file():
            shutil.copy(source / file, folder)
    return folder


REAL = ("bundled", "r1", "smollm2")
"""Tokenizers of real models."""


def real_folder(name: str) -> Path:
    """The folder of a real tokenizer. Skips the test where it cannot be had."""
    if name == "bundled":
        return BUNDLED_FOLDER
    if name == "smollm2":
        return smollm2().folder
    if (folder := os.environ.get("DRAY_TEST_R1_TOKENIZER")) is None:
        pytest.skip("DRAY_TEST_R1_TOKENIZER names no folder with the tokenizer of the R1 distills")
    return Path(folder)


def _with_tokens(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in MARKS])
    return tokenizer


def _model(tokenizer: Tokenizer) -> dict[str, Any]:
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}
