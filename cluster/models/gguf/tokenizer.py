"""Builds a model's tokenizer from a GGUF file's metadata.

Source of the pre-tokenizers' names and patterns: llama.cpp's src/llama-vocab.cpp. The byte-level patterns are those of
the models' own tokenizer.json.
"""

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Split

from cluster.models.gguf.header import GgufError, Header
from cluster.models.gguf.sentencepiece import TokenType, build_sentencepiece

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>")
"""Special tokens that end a completion in whichever model has them: files often name only one."""


def _split(*patterns: str) -> Any:
    """Splits by each pattern in turn: what it matches is one part, and what lies between is another."""
    splits = [Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])


def _qwen2() -> Any:
    return _split(rf"{_SUFFIXES}|{_WORDS}|\p{{N}}|{_OTHERS}")


def _llama_bpe() -> Any:
    return _split(rf"{_SUFFIXES}|{_WORDS}|\p{{N}}{{1,3}}|{_OTHERS}")


def _smollm() -> Any:
    return pre_tokenizers.Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])


def _default() -> Any:
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
    return _split(r"[\p{P}\$\+<=>\^~\|]+", gpt2, r"\p{N}+", "[0-9][0-9][0-9]")


_PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "default": _default,
    "smollm": _smollm,
    "qwen2": _qwen2,
    "deepseek-r1-qwen": _qwen2,
    "llama-bpe": _llama_bpe,
}
_COMPOSED = ("qwen2", "deepseek-r1-qwen")
"""These models' tokenizers compose characters first (NFC)."""


def build_tokenizer(header: Header) -> Tokenizer:
    """The file's tokenizer. Raises GgufError where it is of another kind, or its tokens and merges do not fit."""
    kind = header.text("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise GgufError(f"its tokenizer is of the kind {kind!r}; supported are 'gpt2' and 'llama' (SentencePiece)")
    tokens = header.texts("tokenizer.ggml.tokens")
    types = header.integers("tokenizer.ggml.token_type")
    if len(types) != len(tokens):
        raise GgufError(f"it has {len(tokens)} tokens, and types of {len(types)}")
    used = len(tokens)
    while used and types[used - 1] == TokenType.UNUSED:  # the embedding's padding
        used -= 1
    vocabulary = {token: number for number, token in enumerate(tokens[:used])}
    if len(vocabulary) != used or "" in vocabulary:
        raise GgufError("it has an empty token, or the same token twice")
    build = _byte_level if kind == "gpt2" else build_sentencepiece
    tokenizer = build(header, vocabulary, types)
    special = [
        AddedToken(token, normalized=False, special=types[number] == TokenType.CONTROL)
        for token, number in vocabulary.items()
        if types[number] in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]
    tokenizer.add_tokens(special)
    begins = kind == "llama" or header.metadata.get("tokenizer.ggml.pre") == "llama-bpe"
    if header.metadata.get("tokenizer.ggml.add_bos_token", begins):
        if (bos := token_id(header, "bos")) is None:
            raise GgufError("it wants a token before each text, and names none (tokenizer.ggml.bos_token_id)")
        first = {"id": "bos", "ids": [bos], "tokens": [tokens[bos]]}
        tokenizer.post_processor = processors.TemplateProcessing(single=["bos", "$A"], special_tokens=[first])
    return tokenizer


def _byte_level(header: Header, vocabulary: dict[str, int], types: tuple[int, ...]) -> Tokenizer:
    """A tokenizer of the kind 'gpt2', without its special tokens."""
    pre = header.text("tokenizer.ggml.pre")
    if pre not in _PRE_TOKENIZERS:
        raise GgufError(f"its pre-tokenizer is {pre!r}; supported are {', '.join(sorted(_PRE_TOKENIZERS))}")
    merges = _merges(header.texts("tokenizer.ggml.merges"), vocabulary)
    # A word of Llama 3 that is a token is that token, whether or not merges lead to it.
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    if pre in _COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def token_id(header: Header, name: str) -> int | None:
    """The id of the token for the beginning (`bos`) or end (`eos`, `eot`, `eom`) of a text, if the file names one."""
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in header.metadata:
        return None
    number, count = header.integer(key), len(header.texts("tokenizer.ggml.tokens"))
    if number >= count:
        raise GgufError(f"{key} is {number}, and it has {count} tokens")
    return number


def stop_ids(header: Header) -> list[int]:
    """Ids of the tokens that end a completion, the model's own first. Raises GgufError where there is none."""
    named = [number for name in ("eos", "eot", "eom") if (number := token_id(header, name)) is not None]
    types = header.integers("tokenizer.ggml.token_type")
    known = [
        number
        for number, token in enumerate(header.texts("tokenizer.ggml.tokens"))
        if token in _END_OF_TURN and types[number] == TokenType.CONTROL
    ]
    if not (ids := list(dict.fromkeys(named + known))):
        raise GgufError("it names no token that ends a text (tokenizer.ggml.eos_token_id)")
    return ids


def _merges(lines: tuple[str, ...], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs of tokens that each line joins. Raises GgufError for those that are, or become, no token."""
    merges = []
    for line in lines:
        left, space, right = line.partition(" ")
        if not space or any(part not in vocabulary for part in (left, right, left + right)):
            raise GgufError(f"its merge {line[:80]!r} does not join two tokens to a third")
        merges.append((left, right))
    return merges
