"""A model's tokens as bytes, from its tokenizer.json: what llguidance needs to know of a vocabulary.

llguidance can read the file itself, but takes seconds for it, and takes any added token written `<…>` for a special
one. Source: the format of Hugging Face's `tokenizers`.
"""

import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers

from cluster.models.tokenizer_files import load_tokenizer
from deployments.common.byte_level import BYTE_OF

_SPACE = "\u2581"
"""SentencePiece's space."""
_LATIN_1 = {ord(character): byte for character, byte in BYTE_OF.items()}
_BYTE = re.compile("<0x([0-9A-F]{2})>")


class TokenBytes:
    """A vocabulary in the form of llguidance's TokenizerWrapper.

    tokens: each token's UTF-8; empty for those that stand for no text. special_token_ids: tokens that no text contains.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, file: Path, size: int, eos_token_id: int) -> None:
        """file: a model's tokenizer.json. size: how many tokens the model has, which may be more than the file's."""
        self._file = file
        self.eos_token_id = eos_token_id
        document = json.loads(file.read_bytes())
        decoders = list(_decoders(document.get("decoder")))
        self._byte_level = any(decoder["type"] == "ByteLevel" for decoder in decoders)
        self._byte_fallback = any(decoder["type"] == "ByteFallback" for decoder in decoders)
        self.tokens = [b""] * size
        for text, token in _vocabulary(document["model"]):
            if token < size:
                self.tokens[token] = self._bytes(text)
        self.special_token_ids = []
        for added in document.get("added_tokens", []):
            if added["id"] < size:
                self.tokens[added["id"]] = added["content"].encode()
                if added["special"]:
                    self.special_token_ids.append(added["id"])

    def _bytes(self, text: str) -> bytes:
        if self._byte_level:
            return text.translate(_LATIN_1).encode("latin-1", "ignore")
        if self._byte_fallback and (byte := _BYTE.fullmatch(text)):
            return bytes.fromhex(byte[1])
        return text.replace(_SPACE, " ").encode()

    def __call__(self, text: str) -> list[int]:
        """The tokens that the model would write this text with, wherever the text stands. llguidance calls it for
        texts that a grammar forces."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        data = text.encode()
        return ids if b"".join(map(self.tokens.__getitem__, ids)) == data else self._longest(data)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = load_tokenizer(self._file.parent)
        # No text before it, no other characters in its place, and special tokens' texts are texts.
        tokenizer.normalizer = normalizers.Sequence([] if self._byte_level else [normalizers.Replace(" ", _SPACE)])
        if not self._byte_level:
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _longest(self, data: bytes) -> list[int]:
        """Tokens with just these bytes, each as long as can be: for texts that the tokenizer would change."""
        special = set(self.special_token_ids)
        id_of = {token: number for number, token in enumerate(self.tokens) if token and number not in special}
        longest = max(map(len, id_of))
        ids, start = [], 0
        while start < len(data):
            sizes = range(min(longest, len(data) - start), 0, -1)
            size = next((size for size in sizes if data[start : start + size] in id_of), 1)
            ids += [id_of[data[start : start + size]]] if data[start : start + size] in id_of else []
            start += size
        return ids


def _decoders(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The decoder, or those that it is a sequence of."""
    if decoder is None:
        return
    yield decoder
    for inner in decoder.get("decoders", []):
        yield from _decoders(inner)


def _vocabulary(model: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The texts of tokens and their ids. Unigram models have a list of pairs with scores."""
    words = model["vocab"]
    if isinstance(words, dict):
        yield from words.items()
    else:
        yield from ((word[0], token) for token, word in enumerate(words))
