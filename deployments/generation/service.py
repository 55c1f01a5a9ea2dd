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
from deployments.api.protocol.completions import together
from deployments.cache.answers import AnswerCache, CacheControl, written
from deployments.cache.semantic import Asking, Near
from deployments.cache.single_flight import SharedFlight
from deployments.common.errors import ApiError
from deployments.common.types import Answer, Delta, Question, Usage
from deployments.generation.broadcast import Flight, Follower
from deployments.generation.endpoint import Served
from deployments.generation.generation import Generation, grammar_for, merged
from deployments.generation.sources import FromEngines, FromFlight, Lane, Source
from deployments.observability.metrics import RouterMetrics
from deployments.observability.tracing import current
from deployments.tenancy.auth import Caller
from deployments.tenancy.quotas import Admission
from deployments.tenancy.usage import UsageBook

_LONG_PROMPT_CHARACTERS = 16_384

_ONCE_S = 600
"""How long the answer to a request with an idempotency key is kept for those who ask again with it."""

Result = Literal["hit", "miss", "join", "bypass"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, whose it is, and until when it must be answered. Times are on the clock of time.perf_counter.

    batch: people go first.
    """

    served: Served
    question: Question
    caller: Caller
    control: CacheControl
    began: float
    deadline: float
    admission: Admission
    batch: bool = False
    once: str = ""
    """The request's idempotency key: another with the same one, and the same question, gets the same answer."""

    @property
    def lane(self) -> Lane:
        return Lane(self.caller.name, self.caller.weight, self.batch)


@dataclass(frozen=True, slots=True)
class Found:
    """A known answer, or one who follows it being made. result: as X-Dray-Cache says it."""

    result: Result
    key: str = ""
    answer: Answer | None = None
    follower: Follower | None = None
    similar: bool = False
    """Whether it was made for the same question in other words."""

    @property
    def headers(self) -> dict[str, str]:
        headers: dict[str, str] = {"X-Dray-Cache": self.result}
        if self.key:
            headers["X-Dray-Cache-Key"] = digest_of(self.key)
        if self.similar:
            headers["X-Dray-Cache-Match"] = "similar"
        if self.answer is not None:
            headers["Age"] = str(max(0, int(time.time() - self.answer.made)))
        return headers


class Answering:
    """Answers questions for one router."""

    def __init__(
        self,
        cache: AnswerCache | None,
        near: Near | None,
        metrics: RouterMetrics,
        usage: UsageBook,
        limits: LimitSettings,
    ) -> None:
        """cache: None where answers are not kept. near: None where only equal questions have the same answer."""
        self._cache = cache
        self._near = near
        self._metrics = metrics
        self._usage = usage
        self._limits = limits
        self._flights: dict[str, Flight] = {}
        self._looking: dict[str, list[asyncio.Future[Answer | None]]] = {}

    async def known(self, asked: Asked) -> tuple[str, Answer] | None:
        """The answer and its key, where it is stored under this very question."""
        cache = self._cache
        if cache is None or not asked.control.reads or (key := self._key(cache, asked)) in self._flights:
            return None
        span = current.get().child("cache")
        known = await self._look(cache, key)
        if known is None or not asked.control.takes(known):
            return None  # the span is not ended, and so is nowhere: who goes on looks again
        span.end()
        return key, known

    async def answer(self, asked: Asked) -> Found:
        """The answer, or a follower of it, who must leave. Raises ApiError 504 for what may not be made."""
        cache, control = self._cache, asked.control
        if cache is None:
            return await self._make(asked, "", shared=False)
        served, key = asked.served, self._key(cache, asked)
        asking = None
        if control.reads:
            if (found := self._join(key, asked)) is not None:
                return found
            with current.get().child("cache"):
                known = await self._look(cache, key)
            if known is not None and control.takes(known):
                return self.hit(asked, key, known)
            if (found := self._join(key, asked)) is not None:
                return found
            # An answer that is there and too old must not be taken for the one that this flight makes.
            shared = known is None and control.stores and (cache.may_keep(asked.question) or bool(asked.once))
            if shared and self._near is not None and not asked.once:
                with current.get().child("similar"):
                    asking = await self._near.asking(served.subject, asked.caller.namespace, asked.question)
                    other = await self._near.find(asking) if asking is not None else None
                    known = await cache.get(other) if other else None
                if other and known is not None and control.takes(known):
                    return replace(self.hit(asked, other, known), similar=True)
                if (found := self._join(key, asked)) is not None:
                    return found
        else:
            shared = False
        if control.only:
            raise ApiError(504, "There is no stored answer, and only-if-cached asks for no other.", code="not_cached")
        return await self._make(asked, key, shared=shared, asking=asking)

    async def generation(self, asked: Asked, source: Source, seed: int) -> Generation:
        """The generation of an answer, ready to begin. Raises ApiError 400."""
        question, served = asked.question, asked.served
        grammar = grammar_for(question, served, self._limits.schema_parts)
        # Long prompts take the tokenizer milliseconds; the event loop has other streams to serve meanwhile.
        if sum(len(turn.content) for turn in question.turns) + len(question.prompt) > _LONG_PROMPT_CHARACTERS:
            prompt = await asyncio.to_thread(served.prompts.render, question)
        else:
            prompt = served.prompts.render(question)
        return Generation(question, prompt, grammar, served, source, seed)

    async def begin(self, asked: Asked, source: Source, seed: int) -> Generation:
        """The same, with its tokens reserved from the team's quota. Raises ApiError 400, 429."""
        generation = await self.generation(asked, source, seed)
        await asked.admission.reserve(self._expected(asked, generation))
        return generation

    async def several(self, asked: Sequence[Asked]) -> Follower:
        """Follows the answers to several questions of a request as one: the choices of each come behind those of the
        one before. They are not kept. Raises ApiError 400, 429."""
        first = asked[0]
        each = first.question.choices
        sources = [self.engines(one) for one in asked]
        generations = [
            await self.generation(one, source, secrets.randbits(63)) for one, source in zip(asked, sources, strict=True)
        ]
        await first.admission.reserve(sum(map(self._expected, asked, generations)))

        async def moved(place: int) -> AsyncGenerator[Delta, None]:
            async for delta in generations[place].deltas():
                yield msgspec.structs.replace(delta, choice=place * each + delta.choice)

        async def deltas() -> AsyncGenerator[Delta, None]:
            try:
                async with aclosing(merged([moved(place) for place in range(len(generations))])) as made:
                    async for delta in made:
                        yield delta
            finally:
                for source in sources:
                    source.close()
                await self.settle(first, generations)

        async def landed() -> Answer:
            answers = [generation.answer for generation in generations if generation.answer is not None]
            for one, generation, answer in zip(asked, generations, answers, strict=True):
                self.count(one, generation, answer, "bypass")
            return together(answers)

        return Flight(deltas(), landed).follow(first.deadline)

    def engines(self, asked: Asked) -> FromEngines:
        """Where this one's tokens are made."""
        served, waits = asked.served, self._metrics.queue_time
        waited = waits[served.model.name, asked.caller.label].observe
        return FromEngines(served.dispatcher, served.queue, asked.lane, waited)

    def _expected(self, asked: Asked, generation: Generation) -> int:
        """Tokens to reserve: all that was asked for, or so many as the settings say where nothing was."""
        most = asked.question.sampling.max_tokens
        wish = most if most < self._limits.output_tokens else min(most, self._limits.reserved_tokens)
        return len(generation.prompt.ids) + wish * asked.question.choices

    async def settle(self, asked: Asked, generations: Sequence[Generation]) -> None:
        """Charges the team with what was made, whether it was told to its end or not."""
        used = (generation.usage for generation in generations)
        await asked.admission.settle(sum(usage.prompt + usage.completion for usage in used))

    def count(self, asked: Asked, generation: Generation, answer: Answer, result: Result) -> None:
        """Counts an answer that was made here, or by a router that this one followed."""
        model, usage, counted, began = generation.served.model.name, answer.usage, self._metrics, asked.began
        counted.count_answer(model, asked.caller.label, usage, result, time.perf_counter() - began)
        self._count_usage(asked, usage, made=result != "join")
        if result == "join":
            return
        counted.time_to_first_token[model, asked.caller.label].observe(generation.first - began)
        if usage.completion > 1:
            per_token = (generation.last - generation.first) / (usage.completion - 1)
            counted.time_per_output_token.labels(model).observe(per_token)

    async def _look(self, cache: AnswerCache, key: str) -> Answer | None:
        """The stored answer. Equal questions at one time are one call to Redis."""
        if (others := self._looking.get(key)) is not None:
            found: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
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

    def _key(self, cache: AnswerCache, asked: Asked) -> str:
        subject = f"{asked.served.subject}\n{asked.once}" if asked.once else asked.served.subject
        return cache.key(asked.served.model.name, subject, asked.caller.namespace, asked.question)

    def hit(self, asked: Asked, key: str, answer: Answer) -> Found:
        """A stored answer, counted as what the team has got."""
        seconds = time.perf_counter() - asked.began
        self._metrics.count_answer(asked.served.model.name, asked.caller.label, answer.usage, "hit", seconds)
        self._count_usage(asked, answer.usage, made=False)
        return Found("hit", key, answer)

    def _join(self, key: str, asked: Asked) -> Found | None:
        flight = self._flights.get(key)
        if flight is None or not flight.joinable:
            return None
        flight.task.add_done_callback(lambda _: self._count_joined(asked, flight))
        current.get().link(flight.span)
        return Found("join", key, follower=flight.follow(asked.deadline))

    def _count_joined(self, asked: Asked, flight: Flight) -> None:
        if flight.answer is not None:
            usage, seconds = flight.answer.usage, time.perf_counter() - asked.began
            self._metrics.count_answer(asked.served.model.name, asked.caller.label, usage, "join", seconds)
            self._count_usage(asked, usage, made=False)

    def _count_usage(self, asked: Asked, usage: Usage, *, made: bool) -> None:
        if asked.caller.team is not None:
            self._usage.count(asked.caller.name, asked.served.model.name, usage, made=made)

    async def remember(self, asking: Asking | None, key: str) -> None:
        """Notes which question the answer that is now stored was made for."""
        if self._near is not None and asking is not None:
            await self._near.remember(asking, key)

    async def _make(self, asked: Asked, key: str, *, shared: bool, asking: Asking | None = None) -> Found:
        making = _Making(self, self._cache if key else None, asked, key, asking, shared=shared)
        flight = Flight(making.deltas(), making.landed, making.wanted)
        if shared:
            self._flights[key] = flight
            flight.task.add_done_callback(lambda _: self._forget(key, flight))
        follower = flight.follow(asked.deadline)
        try:
            await making.begun.wait()
        except asyncio.CancelledError:
            follower.__exit__(None, None, None)
            raise
        if making.known is not None:
            follower.__exit__(None, None, None)
            return self.hit(asked, key, making.known)
        return Found(making.result, key, follower=follower)

    def _forget(self, key: str, flight: Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


class _Making:
    """One answer being made, by this router or, where the flight is shared, by another that it follows."""

    def __init__(
        self,
        answering: Answering,
        cache: AnswerCache | None,
        asked: Asked,
        key: str,
        asking: Asking | None,
        *,
        shared: bool,
    ) -> None:
        """asking: what near questions would find the answer by; None where they are not to find it."""
        self.result: Result = "miss" if cache is not None and asked.control.stores else "bypass"
        self.begun = asyncio.Event()
        self.known: Answer | None = None
        self._answering = answering
        self._cache = cache
        self._asked = asked
        self._key = key
        self._asking = asking
        self._flies = shared
        self._flight: SharedFlight | None = None
        self._generation: Generation | None = None

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        asked = self._asked
        engines = self._answering.engines(asked)
        try:
            await self._fly()
            if self.known is not None:
                for delta in self.known.deltas():
                    yield delta
                return
            source: Source = FromFlight(self._flight, engines) if self._flight else engines
            # All who make this answer draw alike, so that one can go on where another has stopped.
            seed = int(self._flight.name, 16) >> 1 if self._flight else secrets.randbits(63)
            prepare = self._answering.generation if self.result == "join" else self._answering.begin
            self._generation = await prepare(asked, source, seed)
            self.begun.set()
            async with aclosing(self._generation.deltas()) as made:
                async for delta in made:
                    yield delta
        except BaseException:
            if self._flight is not None:
                await self._flight.leave()
            raise
        finally:
            self.begun.set()
            engines.close()
            if self.result != "join" and self._generation is not None:
                await self._answering.settle(asked, [self._generation])

    async def landed(self) -> Answer:
        if self.known is not None:
            return self.known
        assert self._generation is not None and self._generation.answer is not None
        answer, asked, cache = self._generation.answer, self._asked, self._cache
        self._answering.count(asked, self._generation, answer, self.result)
        keep = cache is not None and asked.control.stores and (bool(asked.once) or cache.keeps(asked.question, answer))
        control = replace(asked.control, ttl_s=_ONCE_S) if asked.once else asked.control
        if self._flight is not None and cache is not None:
            await self._flight.land(written(answer) if keep else b"", cache.ttl_s(control))
        elif keep and cache is not None:
            await cache.put(self._key, answer, control)
        if keep and self.result == "miss":
            await self._answering.remember(self._asking, self._key)
        return answer

    async def wanted(self) -> bool:
        return self._flight is not None and await self._flight.wanted()

    async def _fly(self) -> None:
        if not self._flies or self._cache is None:
            return
        found = await self._cache.fly(self._key)
        if isinstance(found, SharedFlight):
            self._flight = found
            self.result = "join" if found.joined else "miss"
        else:
            self.known = found
