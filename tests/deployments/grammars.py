"""Random walks through grammars: what a model that knows nothing would write under them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cluster.models.folder import BUNDLED_FOLDER
from deployments.common.byte_level import BYTE_OF
from deployments.common.messages import Grammar
from deployments.engine.grammar import GrammarCompiler, Mask, Matcher

CLOSING = b'"}],'


class Walker:
    """Follows grammars over one vocabulary, by tokens drawn from what their masks allow."""

    def __init__(self, folder: Path, vocabulary: int, stop_ids: list[int]) -> None:
        self.compiler = GrammarCompiler(folder, vocabulary, stop_ids)
        self.stop_ids = stop_ids
        self._bytes = self.compiler.tokens.tokens
        self._closing = np.array([token[:1] in [bytes([byte]) for byte in CLOSING] for token in self._bytes])

    def allowed(self, mask: Mask) -> list[int]:
        """The ids of a mask."""
        return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()

    def encode(self, text: str, special: dict[str, int]) -> list[int]:
        """The tokens of a text. special: tokens by their text, where they are special ones."""
        for mark, token in special.items():
            if mark in text:
                before, _, after = text.partition(mark)
                return [*self.encode(before, special), token, *self.encode(after, special)]
        return self.compiler.tokens(text) if text else []

    def text(self, ids: list[int]) -> str:
        """The text of tokens."""
        return b"".join(self._bytes[token] for token in ids).decode()

    def walk(self, grammar: Grammar, seed: int, max_tokens: int = 600) -> tuple[str, bool]:
        """A text under the grammar, and whether it came to its end.

        Strings and lists end more often than by chance, and soon after half of the tokens.
        """
        return self.go_on(self.compiler.compile(grammar), seed, max_tokens)

    def go_on(self, matcher: Matcher, seed: int, max_tokens: int) -> tuple[str, bool]:
        """As `walk`, from where the matcher stands."""
        draw, ids = random.Random(seed), list[int]()
        while len(ids) < max_tokens:
            allowed = self.allowed(matcher.mask())
            assert allowed
            if self.stop_ids[0] in allowed and (len(allowed) == len(self.stop_ids) or draw.random() < 0.3):
                return self.text(ids), True
            closing = [token for token in allowed if self._closing[token]]
            late = len(ids) > max_tokens // 2
            token = draw.choice(closing if closing and (late or draw.random() < 0.5) else allowed)
            if token in self.stop_ids:
                return self.text(ids), True
            matcher.consume([token])
            ids.append(token)
        return self.text(ids), False


def bundled_with(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A folder with the bundled model's tokenizer.json, changed."""
    document = json.loads((BUNDLED_FOLDER / "tokenizer.json").read_text())
    change(document)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


def add_tokens(document: dict[str, Any], texts: list[str], *, special: bool, first: int | None = None) -> None:
    """Gives a tokenizer.json further tokens."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    if first is None:
        first = 1 + max(token["id"] for token in document["added_tokens"])
    document["added_tokens"] += [{"id": first + n, "content": text, **flags} for n, text in enumerate(texts)]


def large_tokenizer(folder: Path, size: int = 150_000) -> Path:
    """A folder with a tokenizer.json of this many tokens: byte-level BPE over letters, as in models for English."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = dict.fromkeys(BYTE_OF)
    merges = [("\u0120", letter) for letter in letters]
    merges += [(mark, other) for mark in '"{}[]:,' for other in '"{}[]:,\u0120']
    merges += [(first, second) for first in letters for second in letters]
    pairs = [first + second for first, second in merges]
    merges += [(pair, more) for pair in pairs for more in (*letters, *pairs)]
    for first, second in merges:
        vocabulary.setdefault(first + second)
        if len(vocabulary) == size:
            break
    document = json.loads((BUNDLED_FOLDER / "tokenizer.json").read_text())
    kept = [[first, second] for first, second in merges if first + second in vocabulary]
    document["model"] |= {"vocab": {text: number for number, text in enumerate(vocabulary)}, "merges": kept}
    document["added_tokens"] = []
    add_tokens(document, ["<end>"], special=True, first=size)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder
