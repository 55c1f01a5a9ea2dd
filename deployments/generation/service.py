"""How a question gets its answer: it is known, it is being made, or it is made now."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from cluster.records.cache import digest_of
from cluster.settings import LimitSettings
from deployments.api.protocol.completions import merge_results
from deployments.cache.answers import AnswerCache, CacheControl, encode_result
from deployments.cache.semantic import SemanticCache, SemanticQuery
from deployments.cache.single_flight import FlightLease
from deployments.common.errors import ApiError
from deployments.common.types import Delta, GenerationRequest, GenerationResult, Usage
from deployments.generation.broadcast import Broadcast, Subscriber
from deployments.generation.endpoint import ModelEndpoint
from deployments.generation.generation import Generation, grammar_for, merge_streams
from deployments.generation.sources import EngineSource, FlightSource, QueueClass, TokenSource
from deployments.observability.metrics import RouterMetrics
from deployments.observability.tracing import current
from deployments.tenancy.auth import Caller
from deployments.tenancy.quotas import QuotaGrant
from deployments.tenancy.usage import UsageRecorder

_LONG_PROMPT_CHARACTERS = 16_384

_ONCE_S = 600
"""How long the answer to a request with an idempotency key is kept for those who ask again with it."""

Result = Literal["hit", "miss", "join", "bypass"]


@dataclass(frozen=True, slots=True)
class RequestContext:
    """A question, whose it is, and until when it must be answered. Times are on the clock of time.perf_counter.

    batch: people go first.
    """

    endpoint: ModelEndpoint
    request: GenerationRequest
    caller: Caller
    control: CacheControl
    started: float
    deadline: float
    grant: QuotaGrant
    batch: bool = False
    idempotency_key: str = ""
    """The request's idempotency key: another with the same one, and the same question, gets the same answer."""

    @property
    def queue_class(self) -> QueueClass:
        return QueueClass(self.caller.name, self.caller.weight, self.batch)


@dataclass(frozen=True, slots=True)
class CacheLookup:
    """A known answer, or one who follows it being made. result: as X-Dray-Cache says it."""

    result: Result
    key: str = ""
    stored: GenerationResult | None = None
    subscriber: Subscriber | None = None
    similar: bool = False
    """Whether it was made for the same question in other words."""

    @property
    def headers(self) -> dict[str, str]:
        headers: dict[str, str] = {"X-Dray-Cache": self.result}
        if self.key:
            headers["X-Dray-Cache-Key"] = digest_of(self.key)
        if self.similar:
            headers["X-Dray-Cache-Match"] = "similar"
        if self.stored is not None:
            headers["Age"] = str(max(0, int(time.time() - self.stored.created)))
        return headers


class AnswerService:
    """Answers questions for one router."""

    def __init__(
        self,
        cache: AnswerCache | None,
        near: SemanticCache | None,
        metrics: RouterMetrics,
        usage: UsageRecorder,
        limits: LimitSettings,
    ) -> None:
        """cache: None where answers are not kept. near: None where only equal questions have the same answer."""
        self._cache = cache
        self._near = near
        self._metrics = metrics
        self._usage = usage
        self._limits = limits
        self._flights: dict[str, Broadcast] = {}
        self._looking: dict[str, list[asyncio.Future[GenerationResult | None]]] = {}

    async def lookup(self, asked: RequestContext) -> tuple[str, GenerationResult] | None:
        """The answer and its key, where it is stored under this very question."""
        cache = self._cache
        if cache is None or not asked.control.reads or (key := self._key(cache, asked)) in self._flights:
            return None
        with current.get().child("cache"):
            known = await self._look(cache, key)
        return (key, known) if known is not None and asked.control.accepts(known) else None

    async def answer(self, asked: RequestContext) -> CacheLookup:
        """The answer to a request that `lookup` has found no stored answer for, or a follower of it, who must leave.

        Raises ApiError 504 for what may not be made.
        """
        cache, control = self._cache, asked.control
        if cache is None:
            return await self._make(asked, "", shared=False)
        served, key = asked.endpoint, self._key(cache, asked)
        asking = None
        if control.reads:
            if (found := self._join(key, asked)) is not None:
                return found
            # An answer that is there and too old must not be taken for the one that this flight makes.
            shared = (
                control.max_age_s is None
                and control.stores
                and (cache.is_cacheable(asked.request) or bool(asked.idempotency_key))
            )
            if shared and self._near is not None and not asked.idempotency_key:
                with current.get().child("similar"):
                    asking = await self._near.query(served.cache_subject, asked.caller.namespace, asked.request)
                    other = await self._near.find(asking) if asking is not None else None
                    known = await cache.get(other) if other else None
                if other and known is not None and control.accepts(known):
                    return replace(self.hit(asked, other, known), similar=True)
                if (found := self._join(key, asked)) is not None:
                    return found
        else:
            shared = False
        if control.only_if_cached:
            raise ApiError(504, "There is no stored answer, and only-if-cached asks for no other.", code="not_cached")
        return await self._make(asked, key, shared=shared, asking=asking)

    async def prepare(self, asked: RequestContext, source: TokenSource, seed: int) -> Generation:
        """The generation of an answer, ready to begin. Raises ApiError 400."""
        question, served = asked.request, asked.endpoint
        grammar = grammar_for(question, served, self._limits.schema_parts)
        # Long prompts take the tokenizer milliseconds; the event loop has other streams to serve meanwhile.
        if sum(len(turn.content) for turn in question.messages) + len(question.prompt) > _LONG_PROMPT_CHARACTERS:
            prompt = await asyncio.to_thread(served.prompts.render, question)
        else:
            prompt = served.prompts.render(question)
        return Generation(question, prompt, grammar, served, source, seed)

    async def admit(self, asked: RequestContext, source: TokenSource, seed: int) -> Generation:
        """The same, with its tokens reserved from the team's quota. Raises ApiError 400, 429."""
        generation = await self.prepare(asked, source, seed)
        await asked.grant.reserve(self._expected(asked, generation))
        return generation

    async def answer_many(self, asked: Sequence[RequestContext]) -> Subscriber:
        """Follows the answers to several questions of a request as one: the choices of each come behind those of the
        one before. They are not kept. Raises ApiError 400, 429."""
        first = asked[0]
        each = first.request.num_choices
        sources = [self.engine_source(one) for one in asked]
        generations = [
            await self.prepare(one, source, secrets.randbits(63)) for one, source in zip(asked, sources, strict=True)
        ]
        await first.grant.reserve(sum(map(self._expected, asked, generations)))

        async def moved(place: int) -> AsyncGenerator[Delta, None]:
            async for delta in generations[place].deltas():
                yield msgspec.structs.replace(delta, choice=place * each + delta.choice)

        async def deltas() -> AsyncGenerator[Delta, None]:
            try:
                async with aclosing(merge_streams([moved(place) for place in range(len(generations))])) as made:
                    async for delta in made:
                        yield delta
            finally:
                for source in sources:
                    source.close()
                await self.settle(first, generations)

        async def landed() -> GenerationResult:
            answers = [generation.result for generation in generations if generation.result is not None]
            for one, generation, answer in zip(asked, generations, answers, strict=True):
                self.count(one, generation, answer, "bypass")
            return merge_results(answers)

        return Broadcast(deltas(), landed).subscribe(first.deadline)

    def engine_source(self, asked: RequestContext) -> EngineSource:
        """Where this one's tokens are made."""
        served, waits = asked.endpoint, self._metrics.queue_time
        waited = waits[served.model.name, asked.caller.label].observe
        return EngineSource(served.dispatcher, served.queue, asked.queue_class, waited)

    def _expected(self, asked: RequestContext, generation: Generation) -> int:
        """Tokens to reserve: all that was asked for, or so many as the settings say where nothing was."""
        most = asked.request.sampling.max_tokens
        wish = most if most < self._limits.output_tokens else min(most, self._limits.reserved_tokens)
        return len(generation.prompt.ids) + wish * asked.request.num_choices

    async def settle(self, asked: RequestContext, generations: Sequence[Generation]) -> None:
        """Charges the team with what was made, whether it was told to its end or not."""
        used = (generation.usage for generation in generations)
        await asked.grant.settle(sum(usage.prompt_tokens + usage.completion_tokens for usage in used))

    def count(self, asked: RequestContext, generation: Generation, answer: GenerationResult, result: Result) -> None:
        """Counts an answer that was made here, or by a router that this one followed."""
        model, usage, counted, began = generation.endpoint.model.name, answer.usage, self._metrics, asked.started
        counted.count_answer(model, asked.caller.label, usage, result, time.perf_counter() - began)
        self._count_usage(asked, usage, made=result != "join")
        if result == "join":
            return
        counted.time_to_first_token[model, asked.caller.label].observe(generation.first_token_at - began)
        if usage.completion_tokens > 1:
            per_token = (generation.last_token_at - generation.first_token_at) / (usage.completion_tokens - 1)
            counted.time_per_output_token.labels(model).observe(per_token)

    async def _look(self, cache: AnswerCache, key: str) -> GenerationResult | None:
        """The stored answer. Equal questions at one time are one call to Redis."""
        if (others := self._looking.get(key)) is not None:
            found: asyncio.Future[GenerationResult | None] = asyncio.get_running_loop().create_future()
            others.append(found)
            return await found
        self._looking[key] = others = []
        known = None
        try:
            known = await cache.get(key)
            return known
        finally:
            del self._looking[key]
            for found in others:
                if not found.done():
                    found.set_result(known)

    def _key(self, cache: AnswerCache, asked: RequestContext) -> str:
        subject = (
            f"{asked.endpoint.cache_subject}\n{asked.idempotency_key}"
            if asked.idempotency_key
            else asked.endpoint.cache_subject
        )
        return cache.key(asked.endpoint.model.name, subject, asked.caller.namespace, asked.request)

    def hit(self, asked: RequestContext, key: str, answer: GenerationResult) -> CacheLookup:
        """A stored answer, counted as what the team has got."""
        seconds = time.perf_counter() - asked.started
        self._metrics.count_answer(asked.endpoint.model.name, asked.caller.label, answer.usage, "hit", seconds)
        self._count_usage(asked, answer.usage, made=False)
        return CacheLookup("hit", key, answer)

    def _join(self, key: str, asked: RequestContext) -> CacheLookup | None:
        flight = self._flights.get(key)
        if flight is None or not flight.joinable:
            return None
        flight.task.add_done_callback(lambda _: self._count_joined(asked, flight))
        current.get().link(flight.span)
        return CacheLookup("join", key, subscriber=flight.subscribe(asked.deadline))

    def _count_joined(self, asked: RequestContext, flight: Broadcast) -> None:
        if flight.result is not None:
            usage, seconds = flight.result.usage, time.perf_counter() - asked.started
            self._metrics.count_answer(asked.endpoint.model.name, asked.caller.label, usage, "join", seconds)
            self._count_usage(asked, usage, made=False)

    def _count_usage(self, asked: RequestContext, usage: Usage, *, made: bool) -> None:
        if asked.caller.team is not None:
            self._usage.record(asked.caller.name, asked.endpoint.model.name, usage, made=made)

    async def remember(self, asking: SemanticQuery | None, key: str) -> None:
        """Notes which question the answer that is now stored was made for."""
        if self._near is not None and asking is not None:
            await self._near.add(asking, key)

    async def _make(
        self, asked: RequestContext, key: str, *, shared: bool, asking: SemanticQuery | None = None
    ) -> CacheLookup:
        making = GenerationJob(self, self._cache if key else None, asked, key, asking, shared=shared)
        flight = Broadcast(making.deltas(), making.complete, making.has_followers)
        if shared:
            self._flights[key] = flight
            flight.task.add_done_callback(lambda _: self._forget(key, flight))
        follower = flight.subscribe(asked.deadline)
        try:
            await making.started.wait()
        except asyncio.CancelledError:
            follower.__exit__(None, None, None)
            raise
        if making.stored is not None:
            follower.__exit__(None, None, None)
            return self.hit(asked, key, making.stored)
        return CacheLookup(making.result, key, subscriber=follower)

    def _forget(self, key: str, flight: Broadcast) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


class GenerationJob:
    """One answer being made, by this router or, where the flight is shared, by another that it follows."""

    def __init__(
        self,
        answering: AnswerService,
        cache: AnswerCache | None,
        asked: RequestContext,
        key: str,
        asking: SemanticQuery | None,
        *,
        shared: bool,
    ) -> None:
        """asking: what near questions would find the answer by; None where they are not to find it."""
        self.result: Result = "miss" if cache is not None and asked.control.stores else "bypass"
        self.started = asyncio.Event()
        self.stored: GenerationResult | None = None
        self._answering = answering
        self._cache = cache
        self._asked = asked
        self._key = key
        self._asking = asking
        self._flies = shared
        self._flight: FlightLease | None = None
        self._generation: Generation | None = None

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        asked = self._asked
        engines = self._answering.engine_source(asked)
        try:
            await self._acquire_flight()
            if self.stored is not None:
                for delta in self.stored.deltas():
                    yield delta
                return
            source: TokenSource = FlightSource(self._flight, engines) if self._flight else engines
            # All who make this answer draw alike, so that one can go on where another has stopped.
            seed = int(self._flight.name, 16) >> 1 if self._flight else secrets.randbits(63)
            prepare = self._answering.prepare if self.result == "join" else self._answering.admit
            self._generation = await prepare(asked, source, seed)
            self.started.set()
            async with aclosing(self._generation.deltas()) as made:
                async for delta in made:
                    yield delta
        except BaseException:
            if self._flight is not None:
                await self._flight.release()
            raise
        finally:
            self.started.set()
            engines.close()
            if self.result != "join" and self._generation is not None:
                await self._answering.settle(asked, [self._generation])

    async def complete(self) -> GenerationResult:
        if self.stored is not None:
            return self.stored
        assert self._generation is not None and self._generation.result is not None
        answer, asked, cache = self._generation.result, self._asked, self._cache
        self._answering.count(asked, self._generation, answer, self.result)
        keep = (
            cache is not None
            and asked.control.stores
            and (bool(asked.idempotency_key) or cache.should_store(asked.request, answer))
        )
        control = replace(asked.control, ttl_s=_ONCE_S) if asked.idempotency_key else asked.control
        if self._flight is not None and cache is not None:
            await self._flight.complete(encode_result(answer) if keep else b"", cache.ttl_s(control))
        elif keep and cache is not None:
            await cache.put(self._key, answer, control)
        if keep and self.result == "miss":
            await self._answering.remember(self._asking, self._key)
        return answer

    async def has_followers(self) -> bool:
        return self._flight is not None and await self._flight.has_followers()

    async def _acquire_flight(self) -> None:
        if not self._flies or self._cache is None:
            return
        found = await self._cache.lead(self._key)
        if isinstance(found, FlightLease):
            self._flight = found
            self.result = "join" if found.joined else "miss"
        else:
            self.stored = found
