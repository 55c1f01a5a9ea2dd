"""Which prompt prefixes an engine has cached: a mirror of its KV block table.

OpenVINO GenAI 2026.4 caches prefixes in whole blocks and does not report how much of a prompt it found. The mirror
keeps the same blocks in the same least-recently-used order, so that `usage` can report cached tokens. A router keeps
one mirror for each replica, of the prompts that it sent there.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

BLOCK_TOKENS = 32
"""Tokens in one KV block of the CPU plugin."""


class PrefixMirror:
    """The most recently used blocks, up to a capacity."""

    def __init__(self, capacity: int) -> None:
        """capacity: in blocks."""
        self._capacity = capacity
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def resize(self, capacity: int) -> None:
        """Changes the capacity, in blocks."""
        self._capacity = capacity
        self._trim()

    def match(self, keys: Iterable[bytes]) -> int:
        """Number of leading tokens whose blocks are cached.

        keys: block keys of a prompt without its last token, which is always computed.
        """
        tokens = 0
        for key in keys:
            if key not in self._blocks:
                break
            tokens += BLOCK_TOKENS
        return tokens

    def add(self, keys: Iterable[bytes]) -> None:
        """Marks these blocks as cached and most recently used."""
        for key in keys:
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        self._trim()

    def _trim(self) -> None:
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)


def keys_of(namespace: str, keys: Iterable[bytes]) -> list[bytes]:
    """Block keys that differ between namespaces."""
    prefix = namespace.encode() + b":"
    return [prefix + key for key in keys]


def block_keys(tokens: Sequence[int]) -> list[bytes]:
    """One key for each whole block. A key identifies all tokens up to the end of its block."""
    digest, keys = blake2b(digest_size=16), []
    data = array("i", tokens)
    for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        digest.update(data[end - BLOCK_TOKENS : end].tobytes())
        keys.append(digest.copy().digest())
    return keys
