"""How a request gets its answer: it is curated or stored, it is being generated, or it is generated now."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from cluster.records.cache import digest_of
from cluster.settings import LimitSettings
from deployments.cache.answers import AnswerCache
from deployments.cache.curated import CuratedAnswers
from deployments.cache.semantic import SemanticCache, SemanticQuery
from deployments.common.errors import ApiError
from deployments.common.types import GenerationResult
from deployments.generation.accounting import AnswerAccounting
from deployments.generation.broadcast import Subscriber
from deployments.generation.context import RequestContext, Result
from deployments.generation.job import GenerationJob, GenerationServices
from deployments.generation.large_texts import LargeTexts
from deployments.generation.prompt_batch import broadcast_prompts
from deployments.observability.metrics import RouterMetrics
from deployments.observability.tracing import current
from deployments.tenancy.usage import UsageRecorder


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer that nobody has to generate. key: of the answer in the cache, or the id of a curated one.

    similar: it is for the same question in other words. author: of a curated one, if known.
    """

    key: str
    result: GenerationResult
    kind: Literal["hit", "curated"] = "hit"
    similar: bool = False
    author: str = ""


@dataclass(frozen=True, slots=True)
class CacheLookup:
    """A stored answer, or a subscriber that receives it as it is generated.

    similar: it was stored for the same question in other words. author: of a curated answer, if known.
    """

    result: Result
    key: str = ""
    stored: GenerationResult | None = None
    subscriber: Subscriber | None = None
    similar: bool = False
    author: str = ""

    @property
    def headers(self) -> dict[str, str]:
        headers: dict[str, str] = {"X-Dray-Cache": self.result}
        if self.key:
            headers["X-Dray-Cache-Key"] = digest_of(self.key)
        if self.similar:
            headers["X-Dray-Cache-Match"] = "similar"
        if self.author:
            headers["X-Dray-Curated-Author"] = quote(self.author)
        if self.stored is not None:
            headers["Age"] = str(max(0, int(time.time() - self.stored.created)))
        return headers


class AnswerService:
    """Answers the requests of one router."""

    def __init__(
        self,
        cache: AnswerCache | None,
        semantic: SemanticCache | None,
        metrics: RouterMetrics,
        usage: UsageRecorder,
        limits: LimitSettings,
        large_texts: LargeTexts,
        curated: CuratedAnswers,
    ) -> None:
        """cache: None if answers are not stored. semantic: None if only equal questions get the same answer."""
        self._cache = cache
        self._curated = curated
        self._semantic = semantic
        self._accounting = AnswerAccounting(metrics, usage)
        self._services = GenerationServices(cache, semantic, self._accounting, limits, large_texts)
        self._jobs: dict[str, GenerationJob] = {}
        self._reads: dict[str, list[asyncio.Future[GenerationResult | None]]] = {}

    async def lookup(self, context: RequestContext) -> StoredAnswer | None:
        """The answer if one is curated for this question, or stored for exactly it."""
        cache = self._cache
        if not context.control.reads:
            return None
        names, namespace = (*context.routed, *context.endpoint.model.names), context.caller.namespace
        if (match := await self._curated.find(namespace, names, context.request)) is not None:
            return StoredAnswer(match.answer.id, match.result, "curated", match.similar, match.answer.author)
        if cache is None or (key := self._key(cache, context)) in self._jobs:
            return None
        with current.get().child("cache"):
            stored = await self._read(cache, key)
        return StoredAnswer(key, stored) if stored is not None and context.control.accepts(stored) else None

    def is_generating(self, context: RequestContext) -> bool:
        """Whether the answer is being generated here already, so that the request costs no engine anything."""
        if self._cache is None or not context.control.reads:
            return False
        job = self._jobs.get(self._key(self._cache, context))
        return job is not None and job.accepts(context)

    async def answer(self, context: RequestContext) -> CacheLookup:
        """The answer to a request that `lookup` has found no stored answer for. Its subscriber must be closed.

        Does not read the answer's key again by itself: single flight does, in the one round trip to Redis before the
        engines. Raises ApiError 504 if nothing may be generated.
        """
        cache, control = self._cache, context.control
        if cache is None:
            return await self._generate(context, "", shared=False)
        key, query = self._key(cache, context), None
        if control.reads and (joined := await self._join(key, context)) is not None:
            return joined
        once = bool(context.idempotency_key)
        shared = control.reads and control.stores and (once or cache.is_cacheable(context.request))
        if shared and self._semantic is not None and not once:
            query, similar = await self._find_similar(cache, self._semantic, key, context)
            if (found := similar or await self._join(key, context)) is not None:
                return found
        if control.only_if_cached:
            if (stored := await self.lookup(context)) is not None:
                return self.hit(context, stored)
            raise ApiError(504, "No stored answer, and only-if-cached forbids to generate one.", code="not_cached")
        return await self._generate(context, key, shared=shared, query=query)

    async def answer_many(self, contexts: Sequence[RequestContext]) -> Subscriber:
        """Subscribes to the answers to all prompts of one request, whose choices follow each other in one result.

        They are not stored. Raises ApiError 400, 429.
        """
        return await broadcast_prompts(self._services, contexts)

    def hit(self, context: RequestContext, found: StoredAnswer) -> CacheLookup:
        """A stored answer, counted for the team that gets it."""
        self._accounting.count_reused(context, found.result.usage, found.kind)
        return CacheLookup(found.kind, found.key, found.result, similar=found.similar, author=found.author)

    async def _read(self, cache: AnswerCache, key: str) -> GenerationResult | None:
        """The stored answer. Equal questions at the same time make one call to Redis."""
        if (waiting := self._reads.get(key)) is not None:
            future: asyncio.Future[GenerationResult | None] = asyncio.get_running_loop().create_future()
            waiting.append(future)
            return await future
        self._reads[key] = waiting = []
        stored = None
        try:
            stored = await cache.get(key)
            return stored
        finally:
            del self._reads[key]
            for future in waiting:
                if not future.done():
                    future.set_result(stored)

    async def _find_similar(
        self, cache: AnswerCache, semantic: SemanticCache, key: str, context: RequestContext
    ) -> tuple[SemanticQuery | None, CacheLookup | None]:
        """The question as it is compared with others, and the stored answer to the same one in other words."""
        with current.get().child("similar"):
            query = await semantic.query(context.endpoint.cache_subject, context.caller.namespace, context.request)
            similar_key = await semantic.find(query) if query is not None else None
            stored = await cache.get(similar_key) if similar_key else None
        if similar_key and stored is not None and context.control.accepts(stored):
            return query, self.hit(context, StoredAnswer(similar_key, stored, similar=similar_key != key))
        return query, None

    def _key(self, cache: AnswerCache, context: RequestContext) -> str:
        subject = context.endpoint.cache_subject
        if context.idempotency_key:
            subject = f"{subject}\n{context.idempotency_key}"
        return cache.key(context.endpoint.model.name, subject, context.caller.namespace, context.request)

    async def _join(self, key: str, context: RequestContext) -> CacheLookup | None:
        job = self._jobs.get(key)
        if job is None or not job.accepts(context):
            return None
        current.get().link(job.broadcast.span)
        return CacheLookup("join", key, subscriber=await _started(job, context))

    async def _generate(
        self, context: RequestContext, key: str, *, shared: bool, query: SemanticQuery | None = None
    ) -> CacheLookup:
        job = GenerationJob(self._services, context, key, query, shared=shared)
        if shared:
            self._jobs[key] = job
            job.broadcast.task.add_done_callback(lambda _: self._forget(key, job))
        subscriber = await _started(job, context)
        if job.stored is not None:
            subscriber.close()
            return self.hit(context, StoredAnswer(key, job.stored))
        return CacheLookup(job.result_for(context), key, subscriber=subscriber)

    def _forget(self, key: str, job: GenerationJob) -> None:
        if self._jobs.get(key) is job:
            del self._jobs[key]


async def _started(job: GenerationJob, context: RequestContext) -> Subscriber:
    """Subscribes a request to a generation, and waits until its prompt is known: some streams begin with its size."""
    subscriber = job.join(context)
    try:
        await job.started.wait()
    except asyncio.CancelledError:
        subscriber.close()
        raise
    return subscriber
