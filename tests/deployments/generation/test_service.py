"""Requests for the same answer, in one router and over several: real engines, a real Redis, everything but HTTP."""

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass

import msgspec
import pytest
import redis

from cluster.models.folder import ServedModel
from cluster.records.team_records import Quota, Team
from cluster.redis_server import OwnRedis
from cluster.settings import CacheSettings, LimitSettings
from deployments.cache.answers import AnswerCache, CacheControl
from deployments.cache.curated import CuratedAnswers
from deployments.common.deadlines import Deadline
from deployments.common.errors import ApiError
from deployments.common.messages import Sampling
from deployments.common.redis import RedisStore
from deployments.common.types import GenerationRequest, GenerationResult, Message
from deployments.generation.context import RequestContext
from deployments.generation.endpoint import ModelEndpoint
from deployments.generation.large_texts import LargeTexts
from deployments.generation.prompts import PromptRenderer
from deployments.generation.service import AnswerService, CacheLookup
from deployments.observability.metrics import RouterMetrics
from deployments.routing.dispatcher import Dispatcher
from deployments.routing.division import RouterPart
from deployments.routing.fair_queue import FairQueue, Slot
from deployments.routing.queue_class import TokenCost
from deployments.routing.registry import EngineReplicas
from deployments.tenancy.auth import Caller
from deployments.tenancy.quota_counters import current_month, quota_keys
from deployments.tenancy.quotas import Quotas
from deployments.tenancy.usage import UsageRecorder
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import ANSWER, store_at
from tests.deployments.routing.test_dispatcher import Replica
from tests.deployments.waiting import until

EMPTY = Quota(tokens_per_minute=1_000_000, tokens_per_month=1)
"""Reserving tokens is refused with 429; to ask is not."""
BOTH = pytest.mark.parametrize("count", [1, 2], ids=["same-router", "over-redis"])


@dataclass(frozen=True)
class World:
    """What the tests share: a Redis for answers, one for teams, an engine, and the event loop that it belongs to."""

    answers: OwnRedis
    teams: OwnRedis
    model: ServedModel
    prompts: PromptRenderer
    engine: Replica
    runner: asyncio.Runner

    def run(self, work: Callable[["World"], Coroutine[None, None, None]]) -> None:
        self.runner.run(asyncio.wait_for(work(self), 60))

    @asynccontextmanager
    async def routers(self, *engines: Replica) -> AsyncIterator[list["Router"]]:
        """One router for each engine."""
        routers = [Router(self, dispatcher(engine), store_at(self.answers.url)) for engine in engines]
        yield routers
        for router in routers:
            for store in router.stores:
                await store.close()

    @asynccontextmanager
    async def pair(self, count: int) -> AsyncIterator[tuple["Router", "Router"]]:
        """The router of the first request and that of the second; the same router if `count` is 1."""
        async with self.routers(*[self.engine] * count) as routers:
            yield routers[0], routers[-1]


def dispatcher(engine: Replica) -> Dispatcher:
    return Dispatcher(engine, EngineReplicas("router"), lambda: None)


@pytest.fixture(scope="module")
def world(bundled: ServedModel) -> Iterator[World]:
    with redis_server(64) as answers, redis_server(64) as teams, asyncio.Runner() as runner:
        engine = Replica(bundled)
        yield World(answers, teams, bundled, PromptRenderer(bundled), engine, runner)
        runner.run(engine.stop())


class Router:
    """A router without HTTP: one engine slot, a queue, an answer cache, quotas and usage."""

    def __init__(self, world: World, dispatcher: Dispatcher, answers: RedisStore) -> None:
        self.stores = [answers, store_at(world.teams.url, timeout_s=5)]
        self.queue = FairQueue(1, 100, 10**6)
        self.quotas = Quotas(self.stores[1], 1)
        self.usage = UsageRecorder(self.stores[1])
        self._endpoint = ModelEndpoint(world.model, "fingerprint", world.prompts, dispatcher, self.queue)
        self.cache = AnswerCache(CacheSettings(), self.stores[0])
        curated = CuratedAnswers(CacheSettings(), self.stores[1], None, {})
        curated._tried.set()
        metrics, limits = RouterMetrics(), LimitSettings()
        self.service = AnswerService(self.cache, None, metrics, self.usage, limits, LargeTexts(), curated)

    async def context(
        self,
        question: str,
        team: Team,
        *,
        batch: bool = False,
        choices: int = 1,
        timeout_s: float = 60.0,
        control: CacheControl | None = None,
    ) -> RequestContext:
        request = GenerationRequest((Message("user", question),), Sampling(300), num_choices=choices)
        now = time.perf_counter()
        grant = await self.quotas.admit(team)
        caller = Caller(team, "shared")
        usual = CacheControl()
        return RequestContext(
            self._endpoint, request, caller, control or usual, now, now + timeout_s, grant, batch=batch
        )

    async def occupied(self) -> Slot:
        """Takes the only engine slot."""
        return await self.queue.acquire("occupant", 1.0, TokenCost(1, 1))


def new_question() -> str:
    return f"What is {secrets.randbelow(1000)} + {secrets.randbelow(1000)}?"


def team(name: str, quota: Quota | None = None, weight: float = 1.0) -> Team:
    """A team with a name of its own, so that no test counts the usage of another test."""
    return Team(f"{name}-{secrets.token_hex(4)}", 0.0, weight=weight, shares_answers=True, quota=quota or Quota())


async def result_of(lookup: CacheLookup) -> GenerationResult:
    if lookup.stored is not None:
        return lookup.stored
    assert lookup.subscriber is not None
    with lookup.subscriber as subscriber, closing(Deadline()) as watchdog:
        while subscriber.result is None:
            await subscriber.next_batch(watchdog)
        return subscriber.result


async def asked(router: Router, context: RequestContext) -> GenerationResult:
    return await result_of(await router.service.answer(context))


def asking(router: Router, context: RequestContext) -> asyncio.Task[GenerationResult]:
    return asyncio.create_task(asked(router, context))


def pause(server: OwnRedis, milliseconds: int) -> None:
    """Delays all calls to this server by this time."""
    with redis.Redis.from_url(server.url) as raw:
        raw.execute_command("CLIENT", "PAUSE", milliseconds, "ALL")


def has_leader(server: OwnRedis) -> bool:
    """Whether a router leads a flight."""
    with redis.Redis.from_url(server.url) as raw:
        return bool(raw.keys("dray:leader:*"))


def month_of(teams: OwnRedis, team: Team) -> int:
    """The tokens that the team was charged for this month."""
    with redis.Redis.from_url(teams.url) as raw:
        return int(raw.get(quota_keys(team.name, current_month())[3]) or 0)


@BOTH
@pytest.mark.parametrize("choices", [1, 3])
def test_a_person_who_joins_a_waiting_batch_request_lifts_it(world: World, count: int, choices: int) -> None:
    async def work(world: World) -> None:
        order = list[str]()
        async with world.pair(count) as (leading, joining):
            nightly, support, waiting = team("nightly"), team("support"), team("waiting")
            slot, question = await leading.occupied(), new_question()
            batch = await leading.context(question, nightly, batch=True, choices=choices)
            tasks = [asking(leading, batch)]
            await until(lambda: leading.queue.queued == choices)
            for _ in range(4):
                tasks.append(asking(leading, await leading.context(new_question(), waiting)))
            await until(lambda: leading.queue.queued == choices + 4)
            joined = await joining.service.answer(await joining.context(question, support, choices=choices))
            assert joined.result == "join"
            await until(lambda: not any(waiter.batch for waiter in leading.queue._waiting))
            for index, task in enumerate(tasks):
                task.add_done_callback(lambda _, index=index: order.append("joined" if index == 0 else "person"))  # type: ignore[misc]
            slot.release(1)
            [first, *_] = await asyncio.gather(*tasks)
            assert order.index("joined") < (2 if choices == 1 else 4), order
            assert (await result_of(joined)).choices == first.choices
            await until(lambda: leading.queue.running == 0)

    world.run(work)


@BOTH
def test_a_joiner_does_not_get_the_leaders_quota_refusal_and_pays_itself(world: World, count: int) -> None:
    async def work(world: World) -> None:
        async with world.pair(count) as (leading, joining):
            poor, rich, question = team("poor", EMPTY), team("rich", Quota(tokens_per_month=10**6)), new_question()
            contexts = [await leading.context(question, poor), await joining.context(question, rich)]
            pause(world.teams, 1000)
            # The leader waits for its quota while the other team joins.
            leader = asyncio.create_task(leading.service.answer(contexts[0]))
            await until(lambda: bool(leading.service._jobs) and (count == 1 or has_leader(world.answers)))
            joined = await joining.service.answer(contexts[1])
            assert joined.result == "join"
            result = await result_of(joined)
            assert result.usage.completion_tokens > 0
            if count == 1:
                lookup = await leader
                assert lookup.result == "join" and await result_of(lookup) == result, "as if it had joined"
            else:
                with pytest.raises(ApiError) as refused:
                    await result_of(await leader)
                assert refused.value.status == 429
            used = result.usage.prompt_tokens + result.usage.completion_tokens
            assert (month_of(world.teams, rich), month_of(world.teams, poor)) == (used, 0)
            rows = {row.team: row for row in await joining.usage.read(1, None)}
            assert rows[rich.name].completion == result.usage.completion_tokens and rows[rich.name].hits == 0

    world.run(work)


def test_if_no_team_has_tokens_left_each_gets_its_own_refusal(world: World) -> None:
    async def work(world: World) -> None:
        async with world.pair(1) as (router, _):
            minute, month = team("minute", Quota(tokens_per_minute=50)), team("month", EMPTY)
            await (await router.context("", minute)).grant.reserve(45)
            question, teams = new_question(), (month, minute, month, minute)
            contexts = [await router.context(question, team) for team in teams]
            pause(world.teams, 500)
            outcomes = await asyncio.gather(*(asked(router, context) for context in contexts), return_exceptions=True)
            for outcome, asker in zip(outcomes, teams, strict=True):
                assert isinstance(outcome, ApiError) and outcome.status == 429
                assert ("1 token a month" if asker is month else "50 tokens a minute") in outcome.message
            assert router.queue.running == 0 and not router.service._jobs

    world.run(work)


@pytest.mark.parametrize("choices", [1, 2])
def test_a_joiner_does_not_get_the_refusal_of_the_leaders_queue(world: World, choices: int) -> None:
    async def work(world: World) -> None:
        async with world.pair(1) as (router, _):
            flooding, quiet, question = team("flooding"), team("quiet"), new_question()
            slot = await router.occupied()
            router.queue.resize(RouterPart.even(1), 4, 10**6)
            flood = [asking(router, await router.context(new_question(), flooding)) for _ in range(4)]
            await until(lambda: router.queue.queued == 4)
            # Alone, the leader is refused.
            with pytest.raises(ApiError, match="waiting"):
                await asked(router, await router.context(question, flooding, choices=choices))
            contexts = [await router.context(question, asker, choices=choices) for asker in (flooding, quiet)]
            leader, joiner = await asyncio.gather(*map(router.service.answer, contexts))
            assert (leader.result, joiner.result) == ("miss", "join")
            await until(lambda: router.queue.queued == 4 and sum(task.done() for task in flood) == choices)
            slot.release(1)
            assert len((await result_of(joiner)).choices) == choices
            assert await result_of(leader) == await result_of(joiner)
            await asyncio.gather(*flood, return_exceptions=True)

    world.run(work)


@BOTH
@pytest.mark.parametrize("end", ["deadline", "disconnect"])
def test_a_joiner_outlasts_the_leaders_deadline_and_its_client(world: World, count: int, end: str) -> None:
    async def work(world: World) -> None:
        async with world.pair(count) as (leading, joining):
            hasty, patient, question = team("hasty"), team("patient"), new_question()
            slot = await leading.occupied()
            timeout_s = 0.5 if end == "deadline" else 60
            leader = asking(leading, await leading.context(question, hasty, timeout_s=timeout_s))
            await until(lambda: leading.queue.queued == 1)
            joiner = await joining.service.answer(await joining.context(question, patient))
            assert joiner.result == "join"
            if end == "deadline":
                with pytest.raises(ApiError) as late:
                    await leader
                assert late.value.status == 408
            else:
                leader.cancel()
            await asyncio.sleep(1.5)  # longer than a lock lasts, and than a router looks for followers
            slot.release(1)
            assert (await result_of(joiner)).choices[0].text

    world.run(work)


def test_a_question_that_crashes_engines_crashes_those_of_one_router_only(world: World) -> None:
    async def work(world: World) -> None:
        crashing, spared = Replica(world.model, signal.SIGABRT, at=0, kills=9), Replica(world.model)
        async with world.routers(crashing, spared) as [leading, joining]:
            question = new_question()
            contexts = [await router.context(question, team("any")) for router in (leading, joining)]
            leader = asking(leading, contexts[0])
            await until(lambda: crashing.starts > 0)
            same_router = asking(leading, await leading.context(question, team("any")))
            joiner = await joining.service.answer(contexts[1])
            assert joiner.result == "join"
            errors = await asyncio.gather(leader, same_router, result_of(joiner), return_exceptions=True)
            for error in errors:
                assert isinstance(error, ApiError) and error.body.error.code == "engine_failed", error
            assert (crashing.starts, spared.starts) == (2, 0)

    world.run(work)


def test_a_request_for_a_young_answer_does_not_join_one_that_gets_an_old_answer(world: World) -> None:
    async def work(world: World) -> None:
        async with world.pair(1) as (router, _):
            question, young = new_question(), CacheControl(max_age_s=60)
            contexts = [
                await router.context(question, team("any"), control=control) for control in (CacheControl(), young)
            ]
            old = msgspec.structs.replace(ANSWER, created=time.time() - 100)
            await router.cache.put(router.service._key(router.cache, contexts[0]), old, CacheControl())
            any_age, fresh = await asyncio.gather(*map(router.service.answer, contexts))
            assert any_age.result == "hit" and await result_of(any_age) == old
            assert fresh.result == "miss" and (await result_of(fresh)).created > old.created
            await until(lambda: not router.service._jobs)
            again = await router.service.lookup(await router.context(question, team("any"), control=young))
            assert again is not None, "the new answer was stored"

    world.run(work)
