"""Which prompt prefixes an engine holds: a mirror of its KV block table.

OpenVINO GenAI 2026.4 caches prefixes by whole blocks and does not say how much of a prompt it found there.
The mirror keeps the same blocks in the same least-recently-used order, so `usage` can tell; and a router keeps one of
each replica, as far as it has sent it prompts itself.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

BLOCK_TOKENS = 32
"""Tokens in one KV block of the CPU plugin."""


class PrefixMirror:
    """The most recently used blocks, at most `blocks` of them."""

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._held: OrderedDict[bytes, None] = OrderedDict()

    def resize(self, blocks: int) -> None:
        """Holds so many from now on."""
        self._blocks = blocks
        self._trim()

    def match(self, keys: Iterable[bytes]) -> int:
        """Tokens of the blocks at the start that are held. keys: of a prompt without its last token, which is always
        computed."""
        found = 0
        for key in keys:
            if key not in self._held:
                break
            found += BLOCK_TOKENS
        return found

    def add(self, keys: Iterable[bytes]) -> None:
        """Notes that these blocks are held now."""
        for key in keys:
            self._held[key] = None
            self._held.move_to_end(key)
        self._trim()

    def _trim(self) -> None:
        while len(self._held) > self._blocks:
            self._held.popitem(last=False)


def block_keys(tokens: Sequence[int]) -> list[bytes]:
    """A key for each whole block; each stands for all tokens up to the block's end."""
    digest, keys = blake2b(digest_size=16), []
    data = array("i", tokens)
    for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        digest.update(data[end - BLOCK_TOKENS : end].tobytes())
        keys.append(digest.copy().digest())
    return keys
