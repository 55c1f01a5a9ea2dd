"""A tokenizer.json from elsewhere must not stop a router with a short text: its expressions, its tables, its growth."""

import base64
import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Split

from cluster.models.check import check_model
from cluster.models.folder import BUNDLED_FOLDER, ModelFolderError, check_readable, open_model
from cluster.models.tokenizer_cost import check_expression
from cluster.models.tokenizer_files import load_tokenizer
from cluster.settings import ModelSettings
from tests.models.vocabularies import KINDS, real_folder
from tests.security.test_regular_expressions import check_linear

SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
OTHER = r"[^\r\n\p{L}\p{N}]?"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
KNOWN = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama-3": rf"{SUFFIX}|{OTHER}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}",
    "qwen": rf"{SUFFIX}|{OTHER}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}",
    "phi-4": (
        rf"{OTHER}{UPPER}*{LOWER}+{SUFFIX}?|{OTHER}{UPPER}+{LOWER}*{SUFFIX}?|\p{{N}}{{1,3}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
    ),
    "mistral": (rf"{OTHER}{UPPER}*{LOWER}+|{OTHER}{UPPER}+{LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"),
    "deepseek-v3": (
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
        + SPACES
    ),
    "cjk": "[一-龥\u3040-ゟ゠-ヿ]+",
    "falcon": "[0-9][0-9][0-9]",
    "bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "clip": r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "xlm-r": " {2,}",
}
"""Of tokenizers that models have."""
HOSTILE = [
    "(a+)+b",
    "(a|a)*b",
    "a+b",
    "a*a*a*b",
    r"\s+$",
    r"\p{L}+\p{N}*x",
    "a?" * 30 + "a" * 30,
    "((a{1,60}){1,60}){1,60}b",
    "a{0,100000}b",
    r"\s+(?:[a\s]+x)?",
    "a+" + "(?:b?b?b?b?b?b?b?b?b?c)?",
    r"\s*[\r\n]+|\s|\s+",
    f"a+{SPACES}x",
    f"({OTHER}{UPPER}*{LOWER}+|{OTHER}{UPPER}+{LOWER}*)+x",
    r"(a)\1+",
    "(?<=a+)b",
    "(?!.*x)a",
    "(?>a+)b",
    # What Python and Oniguruma read in two ways:
    r"(?#\))a+b)",
    "[a[b]+x]+y",
    "[]a]+]b",
    "[a&&[b]]+x",
    "a{2}+b",
    r"\\p{L}+x",
    r"\X+x",
    r"\N{1}+x",
    "(?~a)",
    "(?x)a #",
    "[a" + r" ?[^(\s|[.,!?…。，、।۔،])]+" + "]+x",
]


@pytest.mark.parametrize("expression", KNOWN.values(), ids=KNOWN)
def test_the_expressions_of_models_are_taken(expression: str) -> None:
    check_expression(expression)


@pytest.mark.slow
@pytest.mark.parametrize("expression", KNOWN.values(), ids=KNOWN)
def test_the_expressions_of_models_are_linear(expression: str) -> None:
    """So that the rule by which they are taken is right."""
    splitter = Split(Regex(expression), "isolated")
    for first, second, end in product("aA1 \n中'.\u0301", "aA \n中.", ("", "x", "\x00")):
        for text_of in (
            lambda size, u=first + second, e=end: u * (size // 2) + e,
            lambda size, a=first, b=second, e=end: a * (size // 2) + b * (size // 2) + e,
        ):
            check_linear(splitter.pre_tokenize_str, text_of, 1 << 15, expression)


@pytest.mark.parametrize("expression", HOSTILE)
def test_expressions_without_a_bound_are_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="may take time without bound"):
        check_expression(expression)


def changed(folder: Path, **parts: Any) -> Path:
    """The bundled model with other parts of its tokenizer."""
    shutil.copytree(BUNDLED_FOLDER, folder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))
    return folder


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


REGEX = {"Regex": "(a+)+b"}
LARGE_TABLE = base64.b64encode((4).to_bytes(4, "little") + bytes(4) + b"x" * 1000 + b"\0").decode()
PARTS: dict[str, dict[str, Any]] = {
    "pre-tokenizer": {"pre_tokenizer": {"type": "Split", "pattern": REGEX, "behavior": "Isolated", "invert": False}},
    "normalizer": {"normalizer": replace(REGEX, "c")},
    "decoder": {"decoder": {"type": "Sequence", "decoders": [replace(REGEX, "c"), {"type": "Fuse"}]}},
    "growth": {"normalizer": {"type": "Sequence", "normalizers": [replace({"String": "a"}, "aa")] * 40}},
    "growth of answers": {"decoder": replace({"String": "a"}, "a" * 10_000)},
    "table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": LARGE_TABLE}},
    "words": {"model": {"type": "WordPiece", "vocab": {"a": 0}, "max_input_chars_per_word": 10**9}},
}


@pytest.mark.parametrize("part", PARTS)
def test_a_tokenizer_without_a_bound_is_not_served(tmp_path: Path, part: str) -> None:
    folder = changed(tmp_path / "model", **PARTS[part])
    with pytest.raises(ModelFolderError, match="cannot be used as a tokenizer"):
        load_tokenizer(folder)
    with pytest.raises(ModelFolderError, match="cannot be used as a tokenizer"):  # before anything is started
        check_readable(open_model(ModelSettings(source=str(folder)), tmp_path))


def test_a_check_says_which_expression(tmp_path: Path) -> None:
    [files] = check_model(changed(tmp_path / "model", **PARTS["pre-tokenizer"]))
    assert "'(a+)+b' may take time without bound" in files.problem


def test_a_key_that_stands_twice_hides_nothing(tmp_path: Path) -> None:
    folder = changed(tmp_path / "model")
    file = folder / "tokenizer.json"
    twice = '{"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "pattern": {"String": "b"}, "content": "x"}'
    file.write_text(f'{file.read_text().rstrip()[:-1]}, "normalizer": {twice}, "normalizer": {twice}}}')
    with pytest.raises(ModelFolderError, match="stands twice"):
        load_tokenizer(folder)
    last = json.dumps(replace(REGEX, "c"))
    file.write_text(
        f'{(BUNDLED_FOLDER / file.name).read_text().rstrip()[:-1]}, "normalizer": null, "normalizer": {last}}}'
    )
    with pytest.raises(ModelFolderError, match="without bound"):
        load_tokenizer(folder)


def test_endless_tokens_are_refused(tmp_path: Path) -> None:
    Tokenizer(Unigram([("<unk>", 0.0), ("a" * 100_000, -1.0)], 0, False)).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelFolderError, match="a token of more than"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", [*KINDS, "bundled"])
def test_tokenizers_of_each_kind_load(tmp_path: Path, kind: str) -> None:
    if kind in KINDS:
        KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path if kind in KINDS else real_folder(kind)).get_vocab_size() > 40
