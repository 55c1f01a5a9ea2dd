"""Which prompt prefixes an engine has cached: a mirror of its KV block table.

A router keeps a mirror for each replica, of the prompts that it sent there. An engine keeps one of the namespaces that
have used its blocks.
"""

import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

BLOCK_TOKENS = 32
"""Tokens in one KV block of the CPU plugin."""
_BLOCK_BYTES = 4 * BLOCK_TOKENS


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


class BlockKeys:
    """The keys of a growing text: one for each whole block. A key identifies all tokens up to the end of its block."""

    def __init__(self, tokens: Sequence[int] = (), salt: bytes = b"") -> None:
        """salt: texts with different salts have no key in common."""
        self.keys: list[bytes] = []
        self._digest = blake2b(salt, digest_size=16)
        self._rest = b""
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends these tokens to the text."""
        # Seven times as fast as an array that is extended by a list (Python 3.11).
        text = self._rest + struct.pack(f"{len(tokens)}i", *tokens)
        whole = len(text) // _BLOCK_BYTES * _BLOCK_BYTES
        for start in range(0, whole, _BLOCK_BYTES):
            self._digest.update(text[start : start + _BLOCK_BYTES])
            self.keys.append(self._digest.copy().digest())
        self._rest = text[whole:]


def block_keys(tokens: Sequence[int]) -> list[bytes]:
    """The keys of a text's whole blocks."""
    return BlockKeys(tokens).keys
