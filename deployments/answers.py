"""The answer cache: what was answered once is answered again at the cost of one Redis read.

A key covers all that an answer depends on: the exact model, what the prompt is made from, what changes the
choice of tokens, and the namespace. Redis slow, full or gone never fails a request: it is answered uncached.
"""

import logging
import random
import time
import zlib
from collections.abc import Callable
from hashlib import blake2b

import msgspec
import redis.asyncio
from redis.exceptions import RedisError

from cluster.settings import CacheSettings
from deployments.question import Answer, Question

log = logging.getLogger("dray.answers")

_FORMAT = b"\x02"
_COMPRESS_OVER_BYTES = 512
_LOG_EVERY_S = 30.0


_encode = msgspec.msgpack.Encoder().encode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode


class AnswerCache:
    """Answers in Redis. Made once a router; `close` when it ends."""

    def __init__(self, settings: CacheSettings, url: str, on_fault: Callable[[], None]) -> None:
        """on_fault: called when a call to Redis fails or is too slow."""
        self._settings = settings
        self._on_fault = on_fault
        self._redis = redis.asyncio.Redis.from_url(
            url,
            protocol=3,
            socket_timeout=settings.timeout_s,
            socket_connect_timeout=settings.timeout_s,
            max_connections=64,
        )
        self._logged = 0.0

    def key(self, subject: str, question: Question) -> str:
        """The key of a question's answer. subject: names the exact model, and whatever else its prompts hold."""
        body = _encode((subject, self._settings.namespace, question))
        return "dray:answer:" + blake2b(body, digest_size=20).hexdigest()

    def keeps(self, question: Question, answer: Answer) -> bool:
        """Whether the policy keeps such an answer: complete, and deterministic unless all are kept."""
        sampling = question.sampling
        deterministic = sampling.temperature == 0 or sampling.seed is not None
        complete = all(choice.finish != "length" for choice in answer.choices)
        return complete and (deterministic or self._settings.store == "all")

    async def get(self, key: str) -> Answer | None:
        """The stored answer; None when there is none or Redis does not say in time."""
        try:
            stored: bytes | None = await self._redis.get(key)  # type: ignore[assignment]  # no decode_responses
        except (RedisError, OSError, TimeoutError) as error:
            self._fault(error)
            return None
        return _unpack(stored) if stored else None

    async def put(self, key: str, answer: Answer) -> None:
        """Stores an answer, if Redis takes it."""
        # Answers made together would expire together; a tenth of jitter spreads the work of making them again.
        ttl = max(1, int(self._settings.ttl_s * random.uniform(0.9, 1.0)))
        try:
            await self._redis.set(key, _pack(answer), ex=ttl)
        except (RedisError, OSError, TimeoutError) as error:
            self._fault(error)

    async def close(self) -> None:
        await self._redis.aclose()

    def _fault(self, error: Exception) -> None:
        self._on_fault()
        if time.monotonic() - self._logged > _LOG_EVERY_S:
            self._logged = time.monotonic()
            log.warning("answer cache is out of reach; going on without it: %s", type(error).__name__)


def _pack(answer: Answer) -> bytes:
    body = _encode(answer)
    packed = zlib.compress(body, 1) if len(body) > _COMPRESS_OVER_BYTES else b""
    return _FORMAT + (b"z" + packed if packed else b"p" + body)


def _unpack(stored: bytes) -> Answer | None:
    """The answer in a stored value; None for another format or garbage."""
    if stored[:1] != _FORMAT:
        return None
    try:
        body = zlib.decompress(stored[2:]) if stored[1:2] == b"z" else stored[2:]
        return _decode_answer(body)
    except (zlib.error, msgspec.MsgspecError):
        return None
