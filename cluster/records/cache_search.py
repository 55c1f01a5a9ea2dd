"""Searches the stored answers, a page at a time, and deletes one.

A page costs at most MAX_SCANNED keys, whatever the cache holds: a search that finds little returns early with a cursor.
"""

from collections.abc import Iterator
from typing import Any, Protocol, cast

import msgspec

from cluster.records.cache import digest_of, keys_with, model_and_namespace, pattern, shown
from cluster.records.client import BlockingRedis
from cluster.records.team_records import NotFound, TeamsError

MAX_SCANNED = 2000
"""Keys of a page."""
_BATCH, _MAX_ROUNDS = 100, 100
"""Keys that are looked at in a round trip, and the most round trips: others' keys are among them."""
_MAX_SEARCHED_BYTES = 256 * 1024
"""Larger values are not searched: to read a page of them would take seconds."""
_SHOWN = 300
"""Characters of a question or an answer in a list."""


class CacheError(TeamsError):
    """The search is wrong; the message says how."""


class CachedAnswer(msgspec.Struct, frozen=True):
    """A stored answer in a list. key: its digest. question, answer: shortened; the question is empty where it was more
    than one message, or wanted more than a text. made: Unix time. bytes: size of the stored value."""

    key: str
    model: str
    namespace: str
    question: str
    answer: str
    made: float
    expires_in_s: int
    bytes: int


class CachePage(msgspec.Struct, frozen=True):
    """Some of the answers that were looked for. next: the cursor of those that follow; empty: there are no others.
    scanned: keys that were read for it."""

    data: list[CachedAnswer]
    next: str
    scanned: int


class _Node(Protocol):
    name: str


class _Cluster(Protocol):
    """What redis-py's client of a cluster has besides."""

    def get_primaries(self) -> list[_Node]: ...
    def scan(
        self, cursor: int, *, match: str, count: int, target_nodes: _Node
    ) -> tuple[dict[str, int], list[bytes]]: ...


def search(
    client: BlockingRedis, text: str = "", *, model: str = "", namespace: str = "", cursor: str = "", limit: int = 50
) -> CachePage:
    """About `limit` answers whose question or answer contains the text, whatever its case; the newest of a page first.

    cursor: of an earlier page of the same search. Raises CacheError.
    """
    found: list[CachedAnswer] = []
    node, position = _position(cursor)
    match, wanted, scanned = pattern(model, namespace), text.casefold(), 0
    for _ in range(_MAX_ROUNDS):
        node, position, keys = _scan(client, node, position, match)
        scanned += len(keys)
        found += _read(client, keys, wanted)
        if node < 0 or len(found) >= limit or scanned >= MAX_SCANNED:
            break
    found.sort(key=lambda answer: -answer.made)
    return CachePage(found, "" if node < 0 else f"{node}.{position}", scanned)


def delete(client: BlockingRedis, digest: str) -> tuple[str, str]:
    """Deletes the answer with this digest, or at this key. Returns its model and namespace. Raises NotFound."""
    for key in keys_with(client, digest):
        with client.pipeline(transaction=False) as pipe:
            pipe.unlink(key)
            if sum(pipe.execute()):
                return model_and_namespace(key)
    raise NotFound("no answer is cached under this key")


def _position(cursor: str) -> tuple[int, int]:
    """The node and its own cursor. Raises CacheError."""
    if not cursor:
        return 0, 0
    numbers = [int(part) for part in cursor.split(".") if part.isascii() and part.isdigit() and len(part) <= 20]
    if len(numbers) != 2 or cursor.count(".") != 1 or numbers[1] >= 2**64:
        raise CacheError("the cursor is not one that a search has returned")
    return numbers[0], numbers[1]


def _scan(client: BlockingRedis, node: int, position: int, match: str) -> tuple[int, int, list[bytes]]:
    """Some keys, and from where to go on; node -1: nowhere. node: of a cluster; else 0."""
    if not hasattr(client, "get_primaries"):
        position, keys = client.scan(position, match=match, count=_BATCH)
        return (0 if position and not node else -1), position, keys
    cluster = cast(_Cluster, client)
    nodes = sorted(cluster.get_primaries(), key=lambda each: each.name)
    if node >= len(nodes):
        return -1, 0, []
    cursors, keys = cluster.scan(position, match=match, count=_BATCH, target_nodes=nodes[node])
    position = next(iter(cursors.values()), 0)
    if not position:
        node = node + 1 if node + 1 < len(nodes) else -1
    return node, position, keys


def _read(client: BlockingRedis, keys: list[bytes], wanted: str) -> Iterator[CachedAnswer]:
    """Those of the answers at these keys that contain the text."""
    if not keys:
        return
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.strlen(key)
        small = [key for key, size in zip(keys, pipe.execute(), strict=True) if 0 < size <= _MAX_SEARCHED_BYTES]
        for key in small:
            pipe.get(key)
            pipe.ttl(key)
        replies = pipe.execute()
    for index, key in enumerate(small):
        stored, ttl = replies[2 * index], replies[2 * index + 1]
        answer = _answer(key, stored, ttl)
        if answer is not None and (wanted in answer[1] or not wanted):
            yield answer[0]


def _answer(key: bytes, stored: Any, ttl: int) -> tuple[CachedAnswer, str] | None:
    """A stored answer, and the text to search; None for another value, or none."""
    whole = shown(key, stored, ttl) if stored else None
    if whole is None:
        return None
    text = "\n\n".join(choice["text"] for choice in whole["choices"])
    question = whole["question"]
    names, texts = (whole["model"], whole["namespace"]), (question[:_SHOWN], text[:_SHOWN])
    listed = CachedAnswer(digest_of(key.decode()), *names, *texts, whole["made"], ttl, whole["bytes"])
    return listed, f"{question}\n{text}".casefold()
