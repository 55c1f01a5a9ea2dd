"""The answer cache: a question that was answered once is answered again at the cost of one Redis read.

This is the only way to stored answers: how they are encoded, how long they are kept, and how single flight stores them
is decided here. A key covers all that an answer depends on: the exact model, what the prompt is made from, what changes
the choice of tokens, and the namespace. A slow, full or absent Redis never fails a request; it is answered uncached.
"""

import random
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b

import msgspec

from cluster.records.cache import WITHHELD, key_of, pack, unpack
from cluster.settings import CacheSettings
from deployments.cache.equivalence import normalize
from deployments.cache.flight_lease import FlightLease
from deployments.cache.single_flight import SingleFlight
from deployments.common.errors import ApiError
from deployments.common.redis import RedisStore, RedisUnavailable
from deployments.common.types import GenerationRequest, GenerationResult
from deployments.routing.queue_class import QueueClass

_MAX_BYTES = 2 * 2**20
"""Answers are larger only with log probabilities of many alternatives. To decode and write one takes a router longer
than a tenth of a second, in which it does nothing else, and a client may ask for a stored one as often as it likes."""

# KEYS: the answer. ARGV: its value, seconds to keep it, the value of an answer that is withheld.
_PUT = """
if redis.call('GETRANGE', KEYS[1], 0, 1) == ARGV[3] then return 0 end
return redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
"""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(GenerationResult).decode


@dataclass(frozen=True, slots=True)
class CacheControl:
    """What a request's headers say about the cache.

    reads: a stored answer, or one under way, is acceptable. stores: the answer may be stored. only_if_cached: generate
    nothing. max_age_s: maximum age of a stored answer; None: any. ttl_s: how long to store the answer; None: as the
    settings say.
    """

    reads: bool = True
    stores: bool = True
    only_if_cached: bool = False
    max_age_s: int | None = None
    ttl_s: int | None = None

    @classmethod
    def from_headers(cls, headers: Mapping[str, str], max_ttl_s: int) -> "CacheControl":
        """Reads Cache-Control (RFC 9111, 5.2.1) and X-Dray-Cache-TTL. Raises ApiError 400."""
        header, ttl = headers.get("cache-control"), headers.get("x-dray-cache-ttl")
        if header is None and ttl is None:
            return _DEFAULT
        directives = {name.strip(): value.strip(' "') for name, _, value in _split(header)}
        max_age = directives.get("max-age")
        return cls(
            reads="no-cache" not in directives and max_age != "0",
            stores="no-store" not in directives,
            only_if_cached="only-if-cached" in directives,
            max_age_s=None if max_age is None else _seconds("Cache-Control", max_age, 0, 2**31),
            ttl_s=None if ttl is None else _seconds("X-Dray-Cache-TTL", ttl, 1, max_ttl_s),
        )

    def accepts(self, result: GenerationResult) -> bool:
        """Whether a stored answer is young enough."""
        return self.max_age_s is None or time.time() - result.created <= self.max_age_s


_DEFAULT = CacheControl()


class AnswerCache:
    """One router's access to the stored answers, and to those that any router generates now."""

    def __init__(self, settings: CacheSettings, store: RedisStore) -> None:
        self._settings = settings
        self._store = store
        self._single_flight = SingleFlight(store)
        self._put = store.script(_PUT)

    def key(self, model: str, subject: str, namespace: str, request: GenerationRequest) -> str:
        """The key of a request's answer. subject: names the exact model, and whatever else its prompts contain."""
        if self._settings.normalize:
            messages = tuple(
                msgspec.structs.replace(message, content=normalize(message.content))
                if message.role == "user"
                else message
                for message in request.messages
            )
            request = msgspec.structs.replace(request, messages=messages)
        digest = blake2b(_encode((subject, namespace, request)), digest_size=20).hexdigest()
        return key_of(model, namespace, digest)

    def is_cacheable(self, request: GenerationRequest) -> bool:
        """Whether the settings allow to store answers to such a request: by default, only deterministic ones."""
        sampling = request.sampling
        return self._settings.store == "all" or sampling.temperature == 0 or sampling.seed is not None

    def should_store(self, request: GenerationRequest, result: GenerationResult) -> bool:
        """Whether the settings allow to store this answer: never one that was cut off."""
        return self.is_cacheable(request) and all(choice.finish_reason != "length" for choice in result.choices)

    async def get(self, key: str) -> GenerationResult | None:
        """The stored answer; None if there is none or Redis does not reply in time."""
        try:
            return await self.read(key)
        except RedisUnavailable:
            return None

    async def read(self, key: str) -> GenerationResult | None:
        """The stored answer; None if there is none. Raises RedisUnavailable."""
        stored = await self._store.get(key)
        return _decode_result(stored, key) if stored else None

    async def put(
        self, key: str, result: GenerationResult, control: CacheControl, lease: FlightLease | None = None
    ) -> None:
        """Stores an answer, unless it is huge, if Redis takes it.

        lease: of the flight that the answer ends, in the same step.
        """
        body, ttl_s = _encode(result), self._ttl_s(control)
        if len(body) > _MAX_BYTES:
            if lease is not None:
                await lease.complete()
            return
        value = pack(body, key)
        if lease is not None:
            await lease.complete(value, ttl_s)
            return
        with suppress(RedisUnavailable):
            await self._put([key], value, ttl_s, WITHHELD)

    async def withhold(self, key: str) -> None:
        """Removes an answer, and stores none in its place for as long as answers may be kept at most.

        Raises RedisUnavailable.
        """
        await self._store.execute("SET", key, WITHHELD, "EX", self._settings.max_ttl_s)

    async def lead(
        self, key: str, queue_class: QueueClass, *, resumable: bool = False
    ) -> GenerationResult | FlightLease | None:
        """The answer if it is stored by now; else a lease to lead its generation, or to follow another router's.

        None without Redis. queue_class: of the request, for the router that leads. resumable: a retry must be able to
        continue the answer after this router's death.
        """
        try:
            acquired = await self._single_flight.acquire(key, queue_class, resumable=resumable)
        except RedisUnavailable:
            return None
        return _decode_result(acquired, key) if isinstance(acquired, bytes) else acquired

    def _ttl_s(self, control: CacheControl) -> int:
        # Answers stored together would expire together; up to a tenth less spreads the work of generating them again.
        return max(1, int((control.ttl_s or self._settings.ttl_s) * random.uniform(0.9, 1.0)))


def _decode_result(stored: bytes, key: str) -> GenerationResult | None:
    """The answer in the value at this key; None for another format or garbage."""
    body = unpack(stored, key)
    try:
        return _decode(body) if body is not None else None
    except msgspec.MsgspecError:
        return None


def _split(header: str | None) -> list[tuple[str, str, str]]:
    return [part.lower().partition("=") for part in (header or "").split(",")]


def _seconds(header: str, text: str, minimum: int, maximum: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18 or not minimum <= int(text) <= maximum:
        message = f"{header}: {text[:20]!r} is not a number of seconds from {minimum} to {maximum}."
        raise ApiError(400, message, code="invalid_header", param=header.lower())
    return int(text)
