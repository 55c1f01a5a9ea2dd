"""The answer cache as it lies in Redis: how keys are named, how values are packed, and what an operator does with it.

A key is `dray:answer:MODEL:NAMESPACE:{HASH}`. The hash says all that the answer depends on; model and namespace are
named so that their answers can be counted and cleared. The braces keep all keys of a question on one node of a cluster.
"""

import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from cluster.records.client import BlockingRedis

PREFIX = "dray:answer:"
_FORMAT = b"\x03"
_COMPRESS_OVER_BYTES = 512
_MOST_BYTES = 64 * 2**20
_BATCH = 500


def key_of(model: str, namespace: str, digest: str) -> str:
    """The key of an answer."""
    return f"{PREFIX}{_part(model)}:{_part(namespace)}:{{{digest}}}"


def pattern(model: str = "", namespace: str = "") -> str:
    """A pattern for the keys of a model's, and of a namespace's, answers; of all where they are empty."""
    return f"{PREFIX}{_part(model) or '*'}:{_part(namespace) or '*'}:*"


def digest_of(key: str) -> str:
    """The hash in a key."""
    return key.rpartition(":")[2].strip("{}")


def pack(body: bytes) -> bytes:
    """A stored value."""
    packed = zlib.compress(body, 1) if len(body) > _COMPRESS_OVER_BYTES else b""
    return _FORMAT + (b"z" + packed if packed else b"p" + body)


def unpack(stored: bytes) -> bytes | None:
    """What was packed; None for another format, for garbage, and for what would be larger than any answer."""
    if stored[:2] == _FORMAT + b"p":
        return stored[2:]
    if stored[:2] != _FORMAT + b"z":
        return None
    unpacker = zlib.decompressobj()
    try:
        body = unpacker.decompress(stored[2:], _MOST_BYTES)
    except zlib.error:
        return None
    return body if unpacker.eof else None


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What the cache holds. answers: by model and namespace. most_bytes: 0 for no bound. evicted: since its start."""

    answers: dict[tuple[str, str], int]
    bytes: int
    max_bytes: int
    evicted: int


def stats(client: BlockingRedis) -> CacheStats:
    """Counts what is there. client: a Redis client that blocks."""
    counted: Counter[tuple[str, str]] = Counter()
    for key in client.scan_iter(match=f"{PREFIX}*", count=_BATCH):
        _, _, model, namespace, _ = key.decode().split(":")
        counted[unquote(model), unquote(namespace)] += 1
    memory, numbers = _info(client, "memory"), _info(client, "stats")
    return CacheStats(dict(counted), memory["used_memory"], memory["maxmemory"], numbers["evicted_keys"])


def clear(client: BlockingRedis, model: str = "", namespace: str = "") -> int:
    """Takes answers away, all or those of a model or a namespace; gives how many."""
    gone = 0
    for batch in _batches(client.scan_iter(match=pattern(model, namespace), count=_BATCH)):
        # One by one in a pipeline: in a cluster they lie on different nodes.
        with client.pipeline(transaction=False) as pipe:
            for key in batch:
                pipe.unlink(key)
            gone += sum(pipe.execute())
    return gone


def show(client: BlockingRedis, digest: str) -> dict[str, Any] | None:
    """The answer of this hash, or of this key; None where there is none."""
    digest = digest_of(digest) if ":" in digest else digest
    for key in client.scan_iter(match=f"{PREFIX}*{{{digest}}}", count=_BATCH):
        stored, ttl = client.get(key), client.ttl(key)
        if stored is None or (body := unpack(stored)) is None:
            continue
        _, _, model, namespace, _ = key.decode().split(":")
        choices, usage, made, *_ = msgspec.msgpack.decode(body)
        return {
            "key": key.decode(),
            "model": unquote(model),
            "namespace": unquote(namespace),
            "made": made,
            "expires_in_s": ttl,
            "bytes": len(stored),
            "usage": dict(zip(("prompt", "completion", "reasoning", "cached"), usage, strict=True)),
            "choices": [{"reasoning": one[0], "text": one[1], "finish": one[2]} for one in choices],
        }
    return None


@lru_cache(4096)
def _part(name: str) -> str:
    # Nothing that a pattern or a cluster would read as more than a letter.
    return quote(name, safe="")


def _info(client: BlockingRedis, section: str) -> Counter[str]:
    """A section of INFO; of a cluster, its nodes' together."""
    said = client.info(section)
    nodes = said.values() if said and all(isinstance(one, dict) for one in said.values()) else [said]
    total: Counter[str] = Counter()
    for node in nodes:
        total.update({name: value for name, value in node.items() if isinstance(value, int)})
    return total


def _batches(keys: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for key in keys:
        batch.append(key)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
