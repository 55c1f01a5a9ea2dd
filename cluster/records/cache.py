"""The answer cache as Redis holds it: how keys are named, how values are packed, and what operators do with it.

A key is `dray:answer:MODEL:NAMESPACE:{DIGEST}`. The digest covers all that the answer depends on. Model and namespace
are in the key so that their answers can be counted and cleared. The braces keep all keys of a question on one node of a
Redis cluster.
"""

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypedDict
from urllib.parse import quote, unquote

import msgspec

from cluster.records.client import BlockingRedis
from cluster.records.sealing import MARK, Unreadable, seal, unseal

PREFIX = "dray:answer:"
_FORMAT = b"\x04"
WITHHELD = _FORMAT + b"w"
"""The value in place of an answer that was voted down: none is stored there."""
_COMPRESS_OVER_BYTES = 512
_MAX_BYTES = 64 * 2**20
_BATCH = 500


def key_of(model: str, namespace: str, digest: str) -> str:
    """The key of an answer."""
    return f"{PREFIX}{_quoted(model)}:{_quoted(namespace)}:{{{digest}}}"


def pattern(model: str = "", namespace: str = "") -> str:
    """A pattern for the keys of a model's and a namespace's answers; empty: of any."""
    return f"{PREFIX}{_quoted(model) or '*'}:{_quoted(namespace) or '*'}:*"


def digest_of(key: str) -> str:
    """The digest in a key."""
    return key.rpartition(":")[2].strip("{}")


def pack(body: bytes, key: str) -> bytes:
    """The value to store at this key: a format byte and the body, compressed if long, and encrypted if that is on."""
    compressed = zlib.compress(body, 1) if len(body) > _COMPRESS_OVER_BYTES else b""
    return seal(_FORMAT + (b"z" + compressed if compressed else b"p" + body), key)


def unpack(value: bytes, key: str) -> bytes | None:
    """The body of the value that is stored at this key; None for another format, for garbage, for more bytes than any
    answer has, and for what cannot be decrypted."""
    stored = unseal(value, key) or b""
    if stored[:2] == _FORMAT + b"p":
        return stored[2:]
    if stored[:2] != _FORMAT + b"z":
        return None
    decompressor = zlib.decompressobj()
    try:
        body = decompressor.decompress(stored[2:], _MAX_BYTES)
    except zlib.error:
        return None
    return body if decompressor.eof else None


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What the cache holds.

    answers: their number, by model and namespace. bytes: memory in use. max_bytes: memory limit; 0: none.
    evicted: keys evicted since the server started.
    """

    answers: dict[tuple[str, str], int]
    bytes: int
    max_bytes: int
    evicted: int


def stats(client: BlockingRedis) -> CacheStats:
    """Counts the stored answers."""
    answers: Counter[tuple[str, str]] = Counter()
    for key in client.scan_iter(match=f"{PREFIX}*", count=_BATCH):
        answers[model_and_namespace(key)] += 1
    memory, numbers = _info(client, "memory"), _info(client, "stats")
    return CacheStats(dict(answers), memory["used_memory"], memory["maxmemory"], numbers["evicted_keys"])


def clear(client: BlockingRedis, model: str = "", namespace: str = "") -> int:
    """Removes all answers, or those of a model or a namespace. Returns their number."""
    removed = 0
    for batch in batches(client.scan_iter(match=pattern(model, namespace), count=_BATCH), _BATCH):
        # One command a key, in a pipeline: in a cluster the keys are on different nodes.
        with client.pipeline(transaction=False) as pipe:
            for key in batch:
                pipe.unlink(key)
            removed += sum(pipe.execute())
    return removed


class ShownChoice(TypedDict):
    """One choice of a stored answer."""

    reasoning: str
    text: str
    finish: str


class ShownAnswer(TypedDict):
    """A stored answer as operators see it. made: Unix time in seconds. bytes: size of the stored value. question: empty
    where it was more than one message, or wanted more than a text."""

    key: str
    model: str
    namespace: str
    made: float
    expires_in_s: int
    bytes: int
    question: str
    usage: dict[str, int]
    choices: list[ShownChoice]


def show(client: BlockingRedis, digest: str) -> ShownAnswer | None:
    """The answer with this digest, or at this key; None if there is none. Raises Unreadable."""
    for key in keys_with(client, digest):
        stored, ttl = client.get(key), client.ttl(key)
        if stored is not None and (answer := shown(key, stored, ttl)) is not None:
            return answer
        if stored is not None and stored.startswith(MARK):
            raise Unreadable.record("this answer")
    return None


def keys_with(client: BlockingRedis, digest: str) -> Iterator[bytes]:
    """The keys with this digest, which may be given as a whole key. None for what Redis would read as a pattern."""
    digest = digest_of(digest) if ":" in digest else digest
    if digest.isascii() and digest.isalnum():
        yield from client.scan_iter(match=f"{PREFIX}*{{{digest}}}", count=_BATCH)


def shown(key: bytes, stored: bytes, ttl: int) -> ShownAnswer | None:
    """The answer in a stored value; None for any other value. ttl: seconds."""
    if (body := unpack(stored, key.decode())) is None:
        return None
    model, namespace = model_and_namespace(key)
    try:
        # GenerationResult of deployments.common.types, which this package does not import.
        fields = msgspec.msgpack.decode(body, type=list[Any])
        choices, usage, created = fields[:3]
        return {
            "key": key.decode(),
            "model": model,
            "namespace": namespace,
            "made": created,
            "expires_in_s": ttl,
            "bytes": len(stored),
            "question": fields[4] if len(fields) > 4 else "",
            "usage": dict(zip(("prompt", "completion", "reasoning", "cached"), usage, strict=True)),
            "choices": [{"reasoning": choice[0], "text": choice[1], "finish": choice[2]} for choice in choices],
        }
    except (msgspec.MsgspecError, ValueError, TypeError, IndexError):
        return None  # of another version


@lru_cache(4096)
def _quoted(name: str) -> str:
    # Nothing that a pattern or a cluster would read as more than a letter.
    return quote(name, safe="")


def model_and_namespace(key: bytes) -> tuple[str, str]:
    """The model and the namespace in a key."""
    _, _, model, namespace, _ = key.decode().split(":")
    return unquote(model), unquote(namespace)


def _info(client: BlockingRedis, section: str) -> Counter[str]:
    """The numbers in a section of INFO; in a cluster, summed over its nodes."""
    info = client.info(section)
    nodes = [node for node in info.values() if isinstance(node, dict)]
    total: Counter[str] = Counter()
    for node in nodes if nodes and len(nodes) == len(info) else [info]:
        total.update({name: value for name, value in node.items() if isinstance(value, int)})
    return total


def batches(keys: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """The keys in lists of at most this many."""
    batch: list[bytes] = []
    for key in keys:
        batch.append(key)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
