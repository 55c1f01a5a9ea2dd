"""SentencePiece's BPE from a GGUF file's words and scores, as Llama 2, TinyLlama and Mistral have it.

A text is cut into characters, and of all neighbours that are a word together, those of the highest score are joined
first. What is in no word becomes bytes. The library `tokenizers` joins by ranked pairs instead, so each way to cut a
word in two becomes a pair, ranked by the word's score. Source: llama.cpp's src/llama-vocab.cpp (llm_tokenizer_spm).
"""

from collections.abc import Mapping
from enum import IntEnum

from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from cluster.models.gguf.header import GgufError, Header

_SPACE = "\u2581"
_BYTES = 256
_MAX_WORD = 128
"""Characters; a word of Llama 2 has at most 27. Cutting a longer one in all places would take long."""


class TokenType(IntEnum):
    """Types of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def build_sentencepiece(header: Header, vocabulary: Mapping[str, int], types: tuple[int, ...]) -> Tokenizer:
    """The tokenizer without its special tokens. Raises GgufError where words, scores and bytes do not fit."""
    scores = header.numbers("tokenizer.ggml.scores")
    if len(scores) != len(types):
        raise GgufError(f"it has {len(types)} tokens, and scores of {len(scores)}")
    if any(f"<0x{byte:02X}>" not in vocabulary for byte in range(_BYTES)):
        raise GgufError("its SentencePiece tokenizer has no token for some byte (<0x00> to <0xFF>)")
    words = {
        word: scores[number]
        for word, number in vocabulary.items()
        if types[number] in (TokenType.NORMAL, TokenType.USER_DEFINED)
    }
    if long := next((word for word in words if len(word) > _MAX_WORD), None):
        raise GgufError(f"it has a token of {len(long)} characters; supported are {_MAX_WORD}")
    tokenizer = Tokenizer(BPE(dict(vocabulary), _pairs(words), byte_fallback=True))
    replaced = normalizers.Replace(" ", _SPACE)
    prefixed = header.metadata.get("tokenizer.ggml.add_space_prefix", True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replaced]) if prefixed else replaced
    spaces = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*spaces, *([decoders.Strip(" ", 1, 0)] if prefixed else ())])
    return tokenizer


def _pairs(words: Mapping[str, float]) -> list[tuple[str, str]]:
    """Both parts of each word that consists of two, in all ways; the words of the highest scores first."""
    pairs = []
    for word in sorted(words, key=lambda word: -words[word]):  # stable: of equal scores, the lowest id first
        for cut in range(1, len(word)):
            if (left := word[:cut]) in words and (right := word[cut:]) in words:
                pairs.append((left, right))
    return pairs
