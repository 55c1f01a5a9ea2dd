"""A router's copy of the curated answers: a request reads memory only, also while the teams' Redis is away.

The copy follows the changes in Redis (`cluster.records.curated`), a fraction of a second behind. What may be stored is
bounded there, and so is the copy. Answers are found by namespace and question; a question in other words is found by
its meaning, as the answer cache finds it, if an embedding model agrees.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from cluster.records.curated import (
    ANSWERS,
    CHANGES,
    FLOOR,
    MODELS,
    PUBLISH_MODELS,
    VERSION,
    CuratedAnswer,
    decode_answer,
)
from cluster.settings import CacheSettings
from deployments.cache.equivalence import meaning_of, normalize
from deployments.cache.questions import fits, question_of
from deployments.cache.semantic import EMBED_S, Embedder, cosine
from deployments.common.errors import ApiError
from deployments.common.redis import BACKGROUND_EXTRA_S, RedisStore, RedisUnavailable
from deployments.common.types import Choice, GenerationRequest, GenerationResult, Usage

log = logging.getLogger("dray.curated")

_REFRESH_S = 0.5
_PAGE = 100
_MAX_VECTORS = 2_000
_FIRST_READ_S = 1.0
"""How long the first requests of a router wait for its first copy."""

# KEYS: answers, changes, version, floor. ARGV: the last change that the copy has, and how many to read.
# Returns the version, the floor, and of each change the id, its number, and the record or "".
_READ_CHANGES = """
local read = {redis.call('GET', KEYS[3]) or '0', redis.call('GET', KEYS[4]) or '0'}
local changes = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
for i = 1, #changes, 2 do
  table.insert(read, changes[i])
  table.insert(read, changes[i + 1])
  table.insert(read, redis.call('HGET', KEYS[1], changes[i]) or '')
end
return read
"""
_READ_ALL = "return redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])"


@dataclass(frozen=True, slots=True)
class CuratedMatch:
    """A curated answer to a request. similar: it is for the same question in other words."""

    answer: CuratedAnswer
    similar: bool = False

    @property
    def result(self) -> GenerationResult:
        """As the APIs write it. No engine read or wrote a token for it, so its usage is 0."""
        return GenerationResult((Choice("", self.answer.answer, "stop"),), Usage(0, 0, 0, 0), self.answer.changed)


@dataclass(slots=True)
class _Namespace:
    """The answers of a namespace, by the question as it is compared, and by its meaning."""

    by_question: dict[str, list[CuratedAnswer]] = field(default_factory=dict)
    by_meaning: dict[str, list[CuratedAnswer]] = field(default_factory=dict)


class CuratedAnswers:
    """The curated answers that one router gives."""

    def __init__(
        self, settings: CacheSettings, store: RedisStore, embedder: Embedder | None, served: Mapping[str, str]
    ) -> None:
        """store: the teams'. embedder: None if only equal questions get the same answer. served: the fingerprints of
        the models that this router serves, by name."""
        self._normalize = settings.normalize
        self._threshold = settings.similarity_threshold
        self._store = store
        self._embedder = embedder
        self._unpublished = dict(served)
        self._read_changes = store.script(_READ_CHANGES)
        self._read_all = store.script(_READ_ALL)
        self._publish = store.script(PUBLISH_MODELS)
        self._version = 0
        self._answers: dict[str, CuratedAnswer] = {}
        self._namespaces: dict[str, _Namespace] = {}
        self._vectors: OrderedDict[str, bytes] = OrderedDict()
        self._tried = asyncio.Event()
        """Set once the first copy was read, or could not be."""

    async def refresh_forever(self) -> None:
        """Follows the changes until cancelled."""
        while True:
            with suppress(RedisUnavailable):  # what was read stays
                await self.refresh()
                await self._publish_models()
            self._tried.set()
            await asyncio.sleep(_REFRESH_S)

    def get(self, namespace: str, number: str) -> CuratedAnswer | None:
        """The answer with this id, if it is the namespace's."""
        answer = self._answers.get(number)
        return answer if answer is not None and answer.namespace == namespace else None

    async def find(self, namespace: str, models: Collection[str], request: GenerationRequest) -> CuratedMatch | None:
        """The curated answer to a request. models: the names of the one that it asks."""
        if not self._tried.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._tried.wait(), _FIRST_READ_S)
        known = self._namespaces.get(namespace)
        if known is None or not (question := question_of(request)):
            return None
        equal = _best(known.by_question.get(self._compared(question), ()), models, request)
        if equal is not None:
            return CuratedMatch(equal)
        if self._embedder is None or not (alike := known.by_meaning.get(meaning_of(question))):
            return None
        similar = _best([answer for answer in alike if await self._is_near(question, answer.question)], models, request)
        return CuratedMatch(similar, similar=True) if similar is not None else None

    async def refresh(self) -> None:
        """Reads what has changed. Raises RedisUnavailable."""
        keys = (ANSWERS, CHANGES, VERSION, FLOOR)
        while True:
            reply = await self._read_changes(keys, self._version, _PAGE, extra_s=BACKGROUND_EXTRA_S)
            version, floor, changes = int(reply[0]), int(reply[1]), reply[2:]
            if version < self._version or self._version < floor:
                await self._read_everything(version)
                return
            for number, change, record in zip(changes[::3], changes[1::3], changes[2::3], strict=True):
                self._replace(number.decode(), record)
                self._version = int(float(change))
            if len(changes) < 3 * _PAGE:
                return

    async def _read_everything(self, version: int) -> None:
        """Reads all answers anew: Redis has forgotten what changed, or was restored from a backup."""
        read: dict[str, bytes] = {}
        cursor = b"0"
        while True:
            cursor, fields = await self._read_all([ANSWERS], cursor, _PAGE, extra_s=BACKGROUND_EXTRA_S)
            read |= {number.decode(): record for number, record in zip(fields[::2], fields[1::2], strict=True)}
            if cursor == b"0":
                break
        for number in self._answers.keys() - read.keys():
            self._replace(number, b"")
        for place, (number, record) in enumerate(read.items()):
            self._replace(number, record)
            if place % _PAGE == 0:
                await asyncio.sleep(0)
        self._version = version
        log.info("curated answers read", extra={"answers": len(self._answers)})

    async def _publish_models(self) -> None:
        """Says once which exact models are served, so that answers made for an older one can be listed."""
        if self._unpublished and self._version:
            models = [part for served in self._unpublished.items() for part in served]
            await self._publish([MODELS], f"{time.time():.3f}", *models)
            self._unpublished = {}

    def _replace(self, number: str, record: bytes) -> None:
        if (old := self._answers.pop(number, None)) is not None:
            self._unlist(old)
        try:
            new = decode_answer(record, number) if record else None
        except msgspec.MsgspecError:
            new = None  # of another version of Dray
        if new is None:
            return
        self._answers[number] = new
        known = self._namespaces.setdefault(new.namespace, _Namespace())
        known.by_question.setdefault(self._compared(new.question), []).append(new)
        if self._embedder is not None:
            known.by_meaning.setdefault(meaning_of(new.question), []).append(new)

    def _unlist(self, old: CuratedAnswer) -> None:
        known = self._namespaces[old.namespace]
        tables = [(known.by_question, self._compared(old.question))]
        if self._embedder is not None:
            tables.append((known.by_meaning, meaning_of(old.question)))
        for table, key in tables:
            table[key].remove(old)
            if not table[key]:
                del table[key]
        if not known.by_question:
            del self._namespaces[old.namespace]

    def _compared(self, question: str) -> str:
        return normalize(question) if self._normalize else question

    async def _is_near(self, question: str, other: str) -> bool:
        try:
            return cosine(await self._vector(question), await self._vector(other)) >= self._threshold
        except ApiError:
            return False

    async def _vector(self, text: str) -> bytes:
        if (vector := self._vectors.get(text)) is None:
            assert self._embedder is not None
            vector = self._vectors[text] = await self._embedder.embed(text, EMBED_S)
            if len(self._vectors) > _MAX_VECTORS:
                self._vectors.popitem(last=False)
        return vector


def _best(
    answers: Collection[CuratedAnswer], models: Collection[str], request: GenerationRequest
) -> CuratedAnswer | None:
    """The one for this very model before one for all, then the newest."""
    now = time.time()
    possible = [
        answer
        for answer in answers
        if (not answer.model or answer.model in models) and answer.is_valid(now) and fits(request, answer.answer)
    ]
    return max(possible, key=lambda answer: (bool(answer.model), answer.changed), default=None)
