"""One generation, for all requests of this router that ask the same question."""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

import msgspec

from cluster.settings import LimitSettings
from deployments.cache.answers import AnswerCache
from deployments.cache.flight_lease import FlightLease
from deployments.cache.questions import question_of
from deployments.cache.semantic import SemanticCache, SemanticQuery
from deployments.common.errors import ApiError
from deployments.common.messages import Grammar
from deployments.common.text_encoder import LARGE_CHARACTERS
from deployments.common.types import Delta, GenerationResult, Usage
from deployments.generation.accounting import AnswerAccounting
from deployments.generation.broadcast import Broadcast, Subscriber
from deployments.generation.context import RequestContext, Result
from deployments.generation.generation import Generation, grammar_for
from deployments.generation.large_texts import LargeTexts
from deployments.generation.prompts import RenderedPrompt
from deployments.generation.requesters import Requesters
from deployments.generation.sources import EngineSource, FlightSource

_CHARACTERS_PER_TOKEN = 8
"""Prompts rarely have more on average, so that an estimate by it refuses none that a team's quota allows."""
_IDEMPOTENT_TTL_S = 600
"""How long the answer to a request with an idempotency key is stored, for those that repeat the request."""


@dataclass(frozen=True, slots=True)
class GenerationServices:
    """What all generations of a router share. cache: None if answers are not stored. semantic: None if only equal
    questions get the same answer."""

    cache: AnswerCache | None
    semantic: SemanticCache | None
    accounting: AnswerAccounting
    limits: LimitSettings
    large_texts: LargeTexts

    def engine_source(self, context: RequestContext) -> EngineSource:
        endpoint, observer = context.endpoint, self.accounting.queue_time_observer(context)
        return EngineSource(endpoint.dispatcher, endpoint.queue, context.queue_class, observer)

    async def prepare(self, context: RequestContext, source: EngineSource) -> Generation:
        """The generation of an answer, ready to start. Raises ApiError 400."""
        request, endpoint = context.request, context.endpoint

        def render() -> tuple[RenderedPrompt, Grammar | None]:
            grammar = grammar_for(request, endpoint, self.limits.schema_parts)
            return endpoint.prompts.render(request), grammar

        size = endpoint.prompts.characters(request) + len(request.schema)
        prompt, grammar = await self.large_texts.run(source.queue_class, size, render)
        return Generation(request, prompt, grammar, endpoint, source, secrets.randbits(63), context.caller.namespace)

    def large_prompt_tokens(self, context: RequestContext, source: EngineSource) -> int:
        """About how many tokens a large prompt has, to reserve before it is tokenized; 0 for any other.

        Raises ApiError 400 for a prompt that cannot fit the context, 503 where the engines' queue is full.
        """
        characters = context.endpoint.prompts.characters(context.request)
        if characters <= LARGE_CHARACTERS:
            return 0
        source.check_room()
        return characters // _CHARACTERS_PER_TOKEN

    async def locate_prefix(self, generation: Generation, source: EngineSource) -> None:
        """Tells the source where the start of the prompt is cached."""
        source.prefix = await generation.endpoint.dispatcher.locate_prefix(generation.prompt.ids)

    def expected_tokens(self, context: RequestContext, generation: Generation) -> tuple[int, int]:
        """Prompt and completion tokens to reserve from the quota: of the latter the request's maximum, or what the
        settings say if it sets none."""
        max_tokens = context.request.sampling.max_tokens
        if max_tokens >= self.limits.output_tokens:
            max_tokens = min(max_tokens, self.limits.reserved_tokens)
        return len(generation.prompt.ids), max_tokens * context.request.num_choices


class GenerationJob:
    """Generates one answer; or, if it is shared, follows another router that does.

    Requests of this router may join it. The work runs in the queue class of the most urgent one, and the quota of the
    first one that has tokens left is charged. So no request gets an error that is another one's own.
    """

    def __init__(
        self,
        services: GenerationServices,
        context: RequestContext,
        key: str,
        query: SemanticQuery | None,
        *,
        shared: bool,
    ) -> None:
        """key: of the answer; empty: it is neither read nor stored. query: finds the answer for similar questions."""
        self.started = asyncio.Event()
        """Set once it is clear where the answer comes from, or that there is none."""
        self.stored: GenerationResult | None = None
        """The answer, if it turned out to be stored."""
        self._services = services
        self._cache = services.cache if key else None
        self._context = context
        self._key = key
        self._query = query
        self._shared = shared
        self._result: Result = "miss" if self._cache is not None and context.control.stores else "bypass"
        self._requesters = Requesters()
        self._engines = services.engine_source(context)
        self._lease: FlightLease | None = None
        self._generation: Generation | None = None
        self._failing = False
        self.broadcast = Broadcast(self._deltas(), self._complete, self._has_followers, self._usage)

    def join(self, context: RequestContext) -> Subscriber:
        """Subscribes a request, and lifts what still waits for the engines to its queue class."""
        subscriber = self.broadcast.subscribe(context.deadline)
        self._requesters.add(context, subscriber)
        self._engines.lift(context.queue_class)
        if self._lease is not None:
            self._lease.lift(context.queue_class)
        return subscriber

    def accepts(self, context: RequestContext) -> bool:
        """Whether the request may join: the generation is not failing, and is as fresh as the request wants."""
        failing = self._failing or self._requesters.refused or self._engines.refused
        fresh = context.control.max_age_s is None or (self.started.is_set() and self.stored is None)
        return self.broadcast.joinable and fresh and not failing

    def result_for(self, context: RequestContext) -> Result:
        """How this request gets its answer."""
        payer = self._requesters.payer
        return self._result if payer is None or payer is context else "join"

    async def _deltas(self) -> AsyncGenerator[Delta, None]:
        try:
            self._generation = generation = await self._prepare()
            # Together, as both are a round trip to Redis.
            await asyncio.gather(self._acquire(), self._services.locate_prefix(generation, self._engines))
            if self.stored is not None:
                for delta in self.stored.deltas():
                    yield delta
                return
            if self._lease is not None:
                generation.source = FlightSource(self._lease, self._engines, self._charge)
                generation.seed = self._lease.seed
            if self._lease is None or not self._lease.joined:
                await self._charge()
            self.started.set()
            async with aclosing(generation.deltas()) as deltas:
                async for delta in deltas:
                    yield delta
        except BaseException as error:
            self._failing = True
            self._context.name_field(error)
            await self._leave(error)
            raise
        finally:
            self.started.set()
            self._engines.close()
            if self._generation is not None:
                await self._requesters.settle(*self._generation.charged_tokens)

    async def _prepare(self) -> Generation:
        services = self._services
        if not (estimated := services.large_prompt_tokens(self._context, self._engines)):
            return await services.prepare(self._context, self._engines)
        # Without tokens left, nothing is tokenized. The exact number is reserved once it is known.
        await self._requesters.charge(estimated)
        try:
            return await services.prepare(self._context, self._engines)
        finally:
            await self._requesters.refund()

    async def _complete(self) -> GenerationResult:
        accounting, payer = self._services.accounting, self._requesters.payer
        if self.stored is not None:
            result = self.stored
        else:
            assert self._generation is not None and self._generation.result is not None
            result = self._generation.result
            if payer is not None:
                await self._store(result)
                accounting.count_generated(payer, self._generation, result.usage, self._result)
            elif self._lease is not None:
                await self._lease.complete()
        for context in self._requesters.others():
            if not (context is self._context and self.stored is not None):
                accounting.count_reused(context, result.usage, "join")
        return result

    async def _store(self, result: GenerationResult) -> None:
        """Stores the answer if that is allowed, and ends the flight."""
        context, cache, control = self._context, self._cache, self._context.control
        once = bool(context.idempotency_key)
        if cache is None or not control.stores or not (once or cache.should_store(context.request, result)):
            if self._lease is not None:
                await self._lease.complete()
            return
        result = msgspec.structs.replace(result, question=question_of(context.request), user=context.user)
        await cache.put(self._key, result, replace(control, ttl_s=_IDEMPOTENT_TTL_S) if once else control, self._lease)
        if self._services.semantic is not None and self._query is not None:
            await self._services.semantic.add(self._query, self._key)

    async def _leave(self, error: BaseException) -> None:
        """Ends this router's part in the flight. The others share an error of the question itself."""
        if self._lease is None:
            return
        if isinstance(error, ApiError) and (error.status == 400 or error.body.error.code == "engine_failed"):
            await self._lease.fail(error)
        else:
            await self._lease.release()

    async def _acquire(self) -> None:
        if not self._shared or self._cache is None:
            return
        acquired = await self._cache.lead(
            self._key, self._engines.queue_class, resumable=bool(self._context.idempotency_key)
        )
        if isinstance(acquired, FlightLease):
            self._lease = acquired
            acquired.on_lift = self._engines.lift
            acquired.lift(self._engines.queue_class)
            if acquired.joined:
                self._result = "join"
        elif acquired is not None and self._context.control.accepts(acquired):
            self.stored = acquired

    async def _charge(self) -> None:
        """Called before the engines generate anything; the generation is this router's own from here on."""
        assert self._generation is not None
        await self._requesters.charge(*self._services.expected_tokens(self._context, self._generation))
        if self._result == "join":
            self._result = "miss"

    def _usage(self) -> Usage:
        return self._generation.usage if self._generation is not None else Usage(0, 0, 0, 0)

    async def _has_followers(self) -> bool:
        return self._lease is not None and await self._lease.has_followers()
