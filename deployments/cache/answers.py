"""The answer cache: what was answered once is answered again at the cost of one Redis read.

A key covers all that an answer depends on: the exact model, what the prompt is made from, what changes the choice of
tokens, and the namespace. Redis slow, full or gone never fails a request: it is answered uncached.
"""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

import msgspec

from cluster.records.cache import digest_of, key_of, pack, unpack
from cluster.settings import CacheSettings
from deployments.cache.equivalence import normalize
from deployments.cache.single_flight import FlightLease, SingleFlight
from deployments.common.errors import ApiError
from deployments.common.redis import RedisStore, RedisUnavailable
from deployments.common.types import GenerationRequest, GenerationResult

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(GenerationResult).decode


@dataclass(frozen=True, slots=True)
class CacheControl:
    """What a request says about the cache.

    reads: a stored answer, or one under way, will do. stores: the answer may be kept. only: no answer shall be made.
    max_age_s: oldest that will do; None: any. ttl_s: how long to keep it; None: as the settings say.
    """

    reads: bool = True
    stores: bool = True
    only_if_cached: bool = False
    max_age_s: int | None = None
    ttl_s: int | None = None

    @classmethod
    def from_headers(cls, headers: Mapping[str, str], most_ttl_s: int) -> "CacheControl":
        """Read from Cache-Control (RFC 9111, 5.2.1) and X-Dray-Cache-TTL. Raises ApiError 400."""
        said, ttl = headers.get("cache-control"), headers.get("x-dray-cache-ttl")
        if said is None and ttl is None:
            return _USUAL
        words = {name.strip(): value.strip(' "') for name, _, value in _parts(said)}
        max_age = words.get("max-age")
        return cls(
            reads="no-cache" not in words and max_age != "0",
            stores="no-store" not in words,
            only_if_cached="only-if-cached" in words,
            max_age_s=None if max_age is None else _seconds("Cache-Control", max_age, 0, 2**31),
            ttl_s=None if ttl is None else _seconds("X-Dray-Cache-TTL", ttl, 1, most_ttl_s),
        )

    def accepts(self, answer: GenerationResult) -> bool:
        """Whether a stored answer is young enough."""
        return self.max_age_s is None or time.time() - answer.created <= self.max_age_s


_USUAL = CacheControl()


class AnswerCache:
    """Answers in Redis, and those that are being made. Made once a router; `close` when it ends."""

    def __init__(self, settings: CacheSettings, store: RedisStore) -> None:
        self._settings = settings
        self._store = store
        self._flights = SingleFlight(store)

    def key(self, model: str, subject: str, namespace: str, question: GenerationRequest) -> str:
        """The key of a question's answer. subject: names the exact model, and whatever else its prompts hold."""
        if self._settings.normalize:
            turns = tuple(
                msgspec.structs.replace(turn, content=normalize(turn.content)) if turn.role == "user" else turn
                for turn in question.messages
            )
            question = msgspec.structs.replace(question, messages=turns)
        digest = blake2b(_encode((subject, namespace, question)), digest_size=20).hexdigest()
        return key_of(model, namespace, digest)

    def is_cacheable(self, question: GenerationRequest) -> bool:
        """Whether the policy keeps answers of such a question: deterministic ones, unless all are kept."""
        sampling = question.sampling
        return self._settings.store == "all" or sampling.temperature == 0 or sampling.seed is not None

    def should_store(self, question: GenerationRequest, answer: GenerationResult) -> bool:
        """Whether the policy keeps this answer: none that was cut off."""
        return self.is_cacheable(question) and all(choice.finish_reason != "length" for choice in answer.choices)

    async def get(self, key: str) -> GenerationResult | None:
        """The stored answer; None when there is none or Redis does not say in time."""
        try:
            stored = await self._store.get(key)
        except RedisUnavailable:
            return None
        return decode_result(stored) if stored else None

    async def put(self, key: str, answer: GenerationResult, control: CacheControl) -> None:
        """Stores an answer, if Redis takes it."""
        try:
            await self._store.execute("SET", key, encode_result(answer), "EX", self.ttl_s(control))
        except RedisUnavailable:
            return

    async def lead(self, key: str) -> GenerationResult | FlightLease | None:
        """The answer where it is there by now; else its flight, led or followed; None where Redis is away."""
        try:
            found = await self._flights.acquire(key, digest_of(key))
        except RedisUnavailable:
            return None
        return decode_result(found) if isinstance(found, bytes) else found

    def ttl_s(self, control: CacheControl) -> int:
        """Seconds to keep an answer that is stored now."""
        # Answers made together would expire together; a tenth of jitter spreads the work of making them again.
        return max(1, int((control.ttl_s or self._settings.ttl_s) * random.uniform(0.9, 1.0)))


def encode_result(answer: GenerationResult) -> bytes:
    """An answer as a stored value."""
    return pack(_encode(answer))


def decode_result(stored: bytes) -> GenerationResult | None:
    """The answer in a stored value; None for another format or garbage."""
    body = unpack(stored)
    try:
        return _decode(body) if body is not None else None
    except msgspec.MsgspecError:
        return None


def _parts(said: str | None) -> list[tuple[str, str, str]]:
    return [part.lower().partition("=") for part in (said or "").split(",")]


def _seconds(header: str, text: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18 or not least <= int(text) <= most:
        message = f"{header}: {text[:20]!r} is not a number of seconds from {least} to {most}."
        raise ApiError(400, message, code="invalid_header", param=header.lower())
    return int(text)
