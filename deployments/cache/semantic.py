"""Stored answers to the same question in other words: found by an embedding model, used only if `equivalent` agrees.

Questions are compared within a context: the same model, namespace, earlier conversation, and sampling. For each context
Redis has a stream with a row for each question, and every router has a copy of it. A hash from answers' digests to rows
keeps routers from adding a question twice.
"""

from array import array
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

import msgspec

from cluster.records.cache import digest_of
from cluster.settings import CacheSettings
from deployments.cache.equivalence import equivalent
from deployments.common.errors import ApiError
from deployments.common.redis import RedisStore, RedisUnavailable
from deployments.common.types import GenerationRequest

_MAX_QUESTIONS = 2000
"""Rows of a context; the oldest go first."""
_MAX_CONTEXTS = 256
_MAX_CANDIDATES = 8
_MAX_CHARACTERS = 2000
_EMBED_S = 1.0

# KEYS: stream of rows, hash of their ids by digest. ARGV: digest, maximum rows, seconds to keep them, the row's fields.
_ADD = """
local id = redis.call('HGET', KEYS[2], ARGV[1])
if not id or #redis.call('XRANGE', KEYS[1], id, id) == 0 then
  while redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[2]) do
    local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
    redis.call('XDEL', KEYS[1], oldest[1])
    for i = 1, #oldest[2], 2 do
      if oldest[2][i] == 'digest' then redis.call('HDEL', KEYS[2], oldest[2][i + 1]) end
    end
  end
  id = redis.call('XADD', KEYS[1], '*', 'digest', ARGV[1], unpack(ARGV, 4))
  redis.call('HSET', KEYS[2], ARGV[1], id)
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return redis.call('EXPIRE', KEYS[2], ARGV[3])
"""

_encode = msgspec.msgpack.Encoder().encode


class Embedder(Protocol):
    """Turns texts into vectors."""

    async def embed(self, text: str, timeout_s: float) -> bytes:
        """A vector of length 1, as little-endian float32. Raises ApiError."""


@dataclass(slots=True)
class _Context:
    """A router's copy of a context's rows. vectors: one after the other. last_id: of the newest row in the copy."""

    last_id: bytes = b"0-0"
    texts: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    vectors: "array[float]" = field(default_factory=lambda: array("f"))


@dataclass(frozen=True, slots=True)
class SemanticQuery:
    """A question to compare. text: of its last message. vector: of the text, as float32. context: of all the rest."""

    context: str
    text: str
    vector: bytes


class SemanticCache:
    """One router's access to the questions of all routers."""

    def __init__(self, settings: CacheSettings, store: RedisStore, embedder: Embedder) -> None:
        self._threshold = settings.similarity_threshold
        self._ttl_s = settings.ttl_s
        self._store = store
        self._add = store.script(_ADD)
        self._embedder = embedder
        self._contexts: OrderedDict[str, _Context] = OrderedDict()

    async def query(self, subject: str, namespace: str, request: GenerationRequest) -> SemanticQuery | None:
        """The request's question with its vector; None if it cannot be compared, or the embedder fails.

        subject: names the exact model, and whatever else its prompts contain.
        """
        if not request.messages or request.messages[-1].role != "user" or request.tools or request.num_choices > 1:
            return None
        *before, last = request.messages
        if not last.content.strip() or len(last.content) > _MAX_CHARACTERS:
            return None
        rest = msgspec.structs.replace(request, messages=(*before, msgspec.structs.replace(last, content="")))
        context = blake2b(_encode((subject, namespace, rest)), digest_size=20).hexdigest()
        try:
            vector = await self._embedder.embed(last.content, _EMBED_S)
        except ApiError:
            return None
        return SemanticQuery(context, last.content, vector)

    async def find(self, query: SemanticQuery) -> str | None:
        """The key of a stored answer to the same question in other words."""
        try:
            context = await self._refreshed(query.context)
        except RedisUnavailable:
            return None
        for index in _nearest(context.vectors, array("f", query.vector), self._threshold):
            if equivalent(query.text, context.texts[index]):
                return context.keys[index]
        return None

    async def add(self, query: SemanticQuery, key: str) -> None:
        """Records that the answer to this question is stored at this key, unless a row says so already."""
        fields = ("text", query.text, "key", key, "vector", query.vector)
        with suppress(RedisUnavailable):
            await self._add(_keys(query.context), digest_of(key), _MAX_QUESTIONS, self._ttl_s, *fields)

    async def _refreshed(self, name: str) -> _Context:
        """The copy of a context, with the rows that were added since the last time."""
        context = self._contexts.setdefault(name, _Context())
        self._contexts.move_to_end(name)
        if len(self._contexts) > _MAX_CONTEXTS:
            self._contexts.popitem(last=False)
        for row_id, fields in await self._store.entries(_keys(name)[0], b"(" + context.last_id):
            if _order(row_id) <= _order(context.last_id):
                continue  # another request has read the same rows meanwhile
            context.last_id = row_id
            context.texts.append(fields[b"text"].decode())
            context.keys.append(fields[b"key"].decode())
            context.vectors.frombytes(fields[b"vector"])
        if (excess := len(context.texts) - _MAX_QUESTIONS) > 0:
            size = len(context.vectors) // len(context.texts)
            del context.texts[:excess], context.keys[:excess], context.vectors[: excess * size]
        return context


def _keys(context: str) -> list[str]:
    return [f"dray:near:{{{context}}}", f"dray:near-rows:{{{context}}}"]


def _order(row_id: bytes) -> tuple[int, ...]:
    return tuple(map(int, row_id.split(b"-")))


def _nearest(vectors: "array[float]", vector: "array[float]", threshold: float) -> list[int]:
    """Rows whose cosine with the vector is at least the threshold, the nearest first, a few at most."""
    import numpy  # only where questions are compared

    rows = numpy.frombuffer(vectors, dtype=numpy.float32).reshape(-1, len(vector))
    cosines = rows @ numpy.frombuffer(vector, dtype=numpy.float32)
    order = numpy.argsort(-cosines)[:_MAX_CANDIDATES]
    return [int(index) for index in order if cosines[index] >= threshold]
