"""Stored answers to the same question in other words: `meaning_of` finds them, and an embedding model must agree.

Questions are compared within a context: the same model, namespace, earlier conversation, and sampling. For each context
Redis has a stream with a row for each question, and every router has a copy of it. A hash from answers' digests to rows
keeps routers from adding a question twice.
"""

from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

import msgspec

from cluster.records.cache import digest_of
from cluster.records.sealing import seal, unseal
from cluster.settings import CacheSettings
from deployments.cache.equivalence import meaning_of
from deployments.common.errors import ApiError
from deployments.common.redis import RedisStore, RedisUnavailable
from deployments.common.types import GenerationRequest

_MAX_QUESTIONS = 20_000
"""Rows of a context; the oldest go first. One takes about 2 KB of Redis' memory and of each router's."""
_MAX_COPIED = 100_000
"""Rows that a router copies, of all contexts."""
_PAGE = 500
"""Rows that are read at a time, within the store's timeout."""
_MAX_CONTEXTS = 256
_MAX_CHARACTERS = 2000
EMBED_S = 1.0

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
class _Row:
    """A stored question. vector: as float32."""

    text: str
    key: str
    vector: bytes


@dataclass(slots=True)
class _Context:
    """A router's copy of a context's rows. last_id: of the newest row in the copy."""

    last_id: bytes = b"0-0"
    rows: deque[_Row] = field(default_factory=deque)
    by_meaning: dict[str, list[_Row]] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """The questions, the oldest first."""
        return [row.text for row in self.rows]

    def append(self, row: _Row) -> None:
        """Adds the newest row."""
        self.rows.append(row)
        self.by_meaning.setdefault(meaning_of(row.text), []).append(row)

    def drop_oldest(self) -> None:
        """Removes the oldest row."""
        row = self.rows.popleft()
        meaning = meaning_of(row.text)
        alike = self.by_meaning[meaning]
        alike.remove(row)
        if not alike:
            del self.by_meaning[meaning]


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
            vector = await self._embedder.embed(last.content, EMBED_S)
        except ApiError:
            return None
        return SemanticQuery(context, last.content, vector)

    async def find(self, query: SemanticQuery) -> str | None:
        """The key of a stored answer to the same question in other words."""
        try:
            context = await self._refreshed(query.context)
        except RedisUnavailable:
            return None
        # A match must have the same meaning, so only rows that have it are compared: no search through all vectors.
        similar = [
            (similarity, row.key)
            for row in context.by_meaning.get(meaning_of(query.text), ())
            if (similarity := cosine(row.vector, query.vector)) >= self._threshold
        ]
        return max(similar)[1] if similar else None

    async def add(self, query: SemanticQuery, key: str) -> None:
        """Records that the answer to this question is stored at this key, unless a row says so already."""
        keys = _keys(query.context)
        # Much of a text can be guessed from its vector.
        text, vector = seal(query.text.encode(), f"{keys[0]} {key} text"), seal(query.vector, f"{keys[0]} {key} vector")
        fields = ("text", text, "key", key, "vector", vector)
        with suppress(RedisUnavailable):
            await self._add(keys, digest_of(key), _MAX_QUESTIONS, self._ttl_s, *fields)

    async def _refreshed(self, name: str) -> _Context:
        """The copy of a context, with the rows that were added since the last time."""
        context = self._contexts.setdefault(name, _Context())
        self._contexts.move_to_end(name)
        if len(self._contexts) > _MAX_CONTEXTS:
            self._contexts.popitem(last=False)
        page = _PAGE
        while page == _PAGE:
            entries = await self._store.entries(_keys(name)[0], b"(" + context.last_id, _PAGE)
            page = len(entries)
            for row_id, fields in entries:
                if _order(row_id) <= _order(context.last_id):
                    continue  # another request has read the same rows meanwhile
                context.last_id = row_id
                if (row := _row(_keys(name)[0], fields)) is not None:
                    context.append(row)
        while len(context.rows) > _MAX_QUESTIONS:
            context.drop_oldest()
        self._forget_others()
        return context

    def _forget_others(self) -> None:
        """Drops the copies that were not used for longest, while all together have too many rows."""
        rows = sum(len(context.rows) for context in self._contexts.values())
        while rows > _MAX_COPIED and len(self._contexts) > 1:
            _, context = self._contexts.popitem(last=False)
            rows -= len(context.rows)


def _row(stream: str, fields: dict[bytes, bytes]) -> _Row | None:
    """The question in an entry of a stream; None if it cannot be decrypted."""
    key = fields[b"key"].decode()
    text, vector = unseal(fields[b"text"], f"{stream} {key} text"), unseal(fields[b"vector"], f"{stream} {key} vector")
    return _Row(text.decode(), key, vector) if text is not None and vector is not None else None


def _keys(context: str) -> list[str]:
    return [f"dray:near:{{{context}}}", f"dray:near-rows:{{{context}}}"]


def _order(row_id: bytes) -> tuple[int, ...]:
    return tuple(map(int, row_id.split(b"-")))


def cosine(first: bytes, second: bytes) -> float:
    """Of two vectors of length 1, as float32; 0 where another model made one of them."""
    import numpy  # only where questions are compared

    if len(first) != len(second):
        return 0.0
    return float(numpy.frombuffer(first, numpy.float32) @ numpy.frombuffer(second, numpy.float32))
