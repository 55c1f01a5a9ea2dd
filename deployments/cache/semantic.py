"""Stored answers to nearly the same question: found by an embedding model, believed only where `alike.same` agrees.

Questions are compared within one context: the same model, namespace, conversation before, and sampling. For each
context there is a Redis stream of its questions with their vectors, of which every router keeps a copy.
"""

from array import array
from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgspec

from cluster.settings import CacheSettings
from deployments.cache.equivalence import equivalent
from deployments.common.errors import ApiError
from deployments.common.redis import RedisStore, RedisUnavailable
from deployments.common.types import GenerationRequest
from deployments.routing.embeddings import EmbeddingEndpoint

_MOST_QUESTIONS = 2000
"""Remembered in a context; older ones are forgotten."""
_MOST_CONTEXTS = 256
_LOOKED_AT = 8
_LONGEST_CHARACTERS = 2000
_EMBED_S = 1.0

_encode = msgspec.msgpack.Encoder().encode


@dataclass(slots=True)
class _Context:
    """A router's copy: vectors of length 1 as rows of `size` numbers."""

    seen: bytes = b"-"
    texts: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    vectors: "array[float]" = field(default_factory=lambda: array("f"))


@dataclass(frozen=True, slots=True)
class SemanticQuery:
    """A question as it is looked for: its last words, their vector as float32, and what they were said in."""

    context: str
    text: str
    vector: bytes


class SemanticCache:
    """Finds and remembers questions, for one router."""

    def __init__(self, settings: CacheSettings, store: RedisStore, embedder: EmbeddingEndpoint) -> None:
        self._least = settings.similarity_threshold
        self._ttl_s = settings.ttl_s
        self._store = store
        self._embedder = embedder
        self._contexts: OrderedDict[str, _Context] = OrderedDict()

    async def query(self, subject: str, namespace: str, question: GenerationRequest) -> SemanticQuery | None:
        """The question with its vector; None for one that is not looked for, or when no vector can be had."""
        if not question.messages or question.messages[-1].role != "user" or question.tools or question.num_choices > 1:
            return None
        *before, last = question.messages
        if not last.content.strip() or len(last.content) > _LONGEST_CHARACTERS:
            return None
        rest = msgspec.structs.replace(question, messages=(*before, msgspec.structs.replace(last, content="")))
        context = blake2b(_encode((subject, namespace, rest)), digest_size=20).hexdigest()
        try:
            [vector] = await self._embedder.embed([last.content], _EMBED_S)
        except ApiError:
            return None
        return SemanticQuery(context, last.content, vector)

    async def find(self, asking: SemanticQuery) -> str | None:
        """The key of an answer to the same question in other words."""
        try:
            context = await self._up_to_date(asking.context)
        except RedisUnavailable:
            return None
        for place in _nearest(context.vectors, array("f", asking.vector), self._least):
            if equivalent(asking.text, context.texts[place]):
                return context.keys[place]
        return None

    async def add(self, asking: SemanticQuery, key: str) -> None:
        """Notes that this question's answer is stored at this key."""
        stream = _stream(asking.context)
        fields = {"text": asking.text, "key": key, "vector": asking.vector}

        def fill(pipe: Any) -> None:
            pipe.xadd(stream, fields, maxlen=_MOST_QUESTIONS, approximate=True)
            pipe.expire(stream, self._ttl_s)

        try:
            await self._store.transaction(fill)
        except RedisUnavailable:
            return

    async def _up_to_date(self, name: str) -> _Context:
        context = self._contexts.setdefault(name, _Context())
        self._contexts.move_to_end(name)
        if len(self._contexts) > _MOST_CONTEXTS:
            self._contexts.popitem(last=False)
        start = context.seen if context.seen == b"-" else b"(" + context.seen
        for number, fields in await self._store.entries(_stream(name), start):
            context.seen = number
            context.texts.append(fields[b"text"].decode())
            context.keys.append(fields[b"key"].decode())
            context.vectors.frombytes(fields[b"vector"])
        if (more := len(context.texts) - _MOST_QUESTIONS) > 0:
            size = len(context.vectors) // len(context.texts)
            del context.texts[:more], context.keys[:more], context.vectors[: more * size]
        return context


def _stream(context: str) -> str:
    return f"dray:near:{{{context}}}"


def _nearest(vectors: "array[float]", one: "array[float]", least: float) -> list[int]:
    """Rows whose cosine with `one` is at least `least`, the nearest first, a few at most."""
    import numpy  # only where near questions are looked for

    rows = numpy.frombuffer(vectors, dtype=numpy.float32).reshape(-1, len(one))
    likeness = rows @ numpy.frombuffer(one, dtype=numpy.float32)
    order = numpy.argsort(-likeness)[:_LOOKED_AT]
    return [int(place) for place in order if likeness[place] >= least]
