"""Which prompt prefixes an engine holds: a mirror of its KV block table.

OpenVINO GenAI 2026.4 caches prefixes by whole blocks and does not say how much of a prompt it found there.
The mirror keeps the same blocks in the same least-recently-used order, so `usage` can tell.
"""

from array import array
from collections import OrderedDict
from hashlib import blake2b

BLOCK_TOKENS = 32
"""Tokens in one KV block of the CPU plugin."""


class PrefixMirror:
    """The most recently used blocks, at most `blocks` of them."""

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._held: OrderedDict[bytes, None] = OrderedDict()

    def match(self, prompt: list[int]) -> int:
        """Tokens at the start of `prompt` that are held. Less than all: the last token is always computed."""
        found = 0
        for key in _keys(prompt[:-1]):
            if key not in self._held:
                break
            found += BLOCK_TOKENS
        return found

    def add(self, tokens: list[int]) -> None:
        """Notes that the whole blocks of `tokens` (prompt and completion) are held now."""
        for key in _keys(tokens):
            self._held[key] = None
            self._held.move_to_end(key)
        while len(self._held) > self._blocks:
            self._held.popitem(last=False)


def _keys(tokens: list[int]) -> list[bytes]:
    """A key for each whole block; each stands for all tokens up to the block's end."""
    digest, keys = blake2b(digest_size=16), []
    data = array("i", tokens)
    for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        digest.update(data[end - BLOCK_TOKENS : end].tobytes())
        keys.append(digest.copy().digest())
    return keys
