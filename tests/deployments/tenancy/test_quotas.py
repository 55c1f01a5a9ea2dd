"""Quotas against a real Redis: exact over several routers, settled by actual use, and always limited."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator

import pytest

from cluster.records.team_records import Quota, Team
from cluster.redis_server import OwnRedis
from cluster.reports.prices import Prices
from cluster.settings import ModelPrice, PriceSettings
from deployments.common.errors import ApiError
from deployments.common.redis import RedisStore
from deployments.tenancy.budgets import Budgets
from deployments.tenancy.local_use import SlidingWindow
from deployments.tenancy.quota_counters import current_month, quota_keys
from deployments.tenancy.quotas import QuotaGrant, Quotas, quota_exceeded
from deployments.tenancy.usage import UsageRecorder
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import closing, store_at
from tests.deployments.routing.clock import Clock
from tests.deployments.waiting import until


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


def run(work: Callable[[], Coroutine[None, None, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await closing(work())

    asyncio.run(bounded())


def team(**quota: int) -> Team:
    return Team("support", 0.0, quota=Quota(**quota))


async def outcome(work: Coroutine[None, None, QuotaGrant | None]) -> str:
    """`admitted`, or the type of the error."""
    try:
        await work
    except ApiError as error:
        assert error.status == 429 and error.body.error.message
        return error.body.error.type
    return "admitted"


def test_requests_a_minute_are_exact_over_routers(server: OwnRedis) -> None:
    async def work() -> None:
        # A long timeout, for 200 requests on a busy machine: without an answer a router uses its own counts.
        routers = [Quotas(store_at(server.url, timeout_s=10), 3) for _ in range(3)]
        support = team(requests_per_minute=50)
        outcomes = Counter(await asyncio.gather(*(outcome(routers[n % 3].admit(support)) for n in range(200))))
        assert outcomes == {"admitted": 50, "requests": 150}
        with pytest.raises(ApiError) as refused:
            await routers[0].admit(support)
        assert 50 <= int(refused.value.headers["Retry-After"]) <= 60
        other_team = Team("other", 0.0, quota=support.quota)
        headers = (await routers[0].admit(other_team)).headers
        assert headers == {
            "x-ratelimit-limit-requests": "50",
            "x-ratelimit-remaining-requests": "49",
            "x-ratelimit-reset-requests": "60s",
        }

    run(work)


def test_requests_at_a_time_are_freed_by_their_end(server: OwnRedis) -> None:
    async def work() -> None:
        first_router, second_router = Quotas(store_at(server.url), 2), Quotas(store_at(server.url), 2)
        support = team(requests_at_a_time=3)
        grants = [
            await first_router.admit(support),
            await second_router.admit(support),
            await first_router.admit(support),
        ]
        assert await outcome(second_router.admit(support)) == "requests"
        await grants[1].release()
        await second_router.admit(support)
        assert await outcome(first_router.admit(support)) == "requests"

    run(work)


def test_requests_at_a_time_are_freed_by_their_routers_death(server: OwnRedis) -> None:
    async def work() -> None:
        living, dying = (Quotas(store_at(server.url), 2, lease_s=3) for _ in range(2))
        support = team(requests_at_a_time=3)
        grants = [await living.admit(support), await living.admit(support)]
        renewing = asyncio.create_task(living.renew_forever())
        lost = await dying.admit(support)  # its router never renews it
        assert await outcome(living.admit(support)) == "requests"

        async def admitted() -> bool:
            return await outcome(living.admit(support)) == "admitted"

        await until(admitted)
        assert await outcome(living.admit(support)) == "requests", "the living router's requests still count"
        renewing.cancel()
        assert lost and grants

    run(work)


def test_tokens_are_reserved_and_settled(server: OwnRedis) -> None:
    async def work() -> None:
        first_router, second_router = Quotas(store_at(server.url), 2), Quotas(store_at(server.url), 2)
        support = team(tokens_per_minute=1000, tokens_per_month=1500)
        first, second, third = [
            await first_router.admit(support),
            await second_router.admit(support),
            await first_router.admit(support),
        ]
        await first.reserve(600)
        assert first.headers["x-ratelimit-remaining-tokens"] == "400"
        assert await outcome(second.reserve(600)) == "tokens"
        await first.settle(200)
        await second.reserve(600)
        await second.settle(700)
        assert await outcome(third.reserve(200)) == "tokens"
        await third.reserve(100)
        assert await outcome(first_router.admit(support)) == "tokens"
        await third.settle(100)

    run(work)


def test_a_reservation_cancelled_midway_is_returned(server: OwnRedis) -> None:
    async def work() -> None:
        quotas = Quotas(store_at(server.url, timeout_s=5), 1)
        bounded = team(tokens_per_minute=1000, tokens_per_month=10_000)
        grant = await quotas.admit(bounded)
        await grant.reserve(100)
        await grant.settle(100)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        leaving = asyncio.create_task(grant.reserve(600))
        await asyncio.sleep(0.1)  # the paused server has the command
        leaving.cancel()
        os.kill(server.pid, signal.SIGCONT)
        await asyncio.wait({leaving})
        assert leaving.cancelled()
        again = await quotas.admit(bounded)
        assert again.headers["x-ratelimit-remaining-tokens"] == "900"
        await again.reserve(900)

    run(work)


def test_the_months_tokens_run_out(server: OwnRedis) -> None:
    async def work() -> None:
        first_router = Quotas(store_at(server.url), 1)
        support = team(tokens_per_month=1000)
        first = await first_router.admit(support)
        await first.reserve(400)
        await first.settle(900)
        second = await first_router.admit(support)
        assert await outcome(second.reserve(200)) == "insufficient_quota"
        await second.reserve(100)
        await second.settle(100)
        assert await outcome(first_router.admit(support)) == "insufficient_quota"

    run(work)


def test_what_a_router_has_reserved_that_dies_is_given_back(server: OwnRedis) -> None:
    prices = Prices(PriceSettings(models=(ModelPrice(model="m", input=1, output=1),)))
    support = Team("support", 0.0, quota=Quota(tokens_per_month=1000), cost_per_month=0.01)

    def quotas(store: RedisStore) -> Quotas:
        budgets = Budgets(prices, UsageRecorder(store), lambda team, limit, share: None)
        return Quotas(store, 2, lease_s=3, budgets=budgets)

    async def work() -> None:
        store = store_at(server.url, timeout_s=10)
        living, dying = quotas(store), quotas(store_at(server.url, timeout_s=10))
        renewing = asyncio.create_task(living.renew_forever())
        kept, lost = await living.admit(support, "m"), await dying.admit(support, "m")
        await kept.reserve(500)
        await lost.reserve(400)

        async def admitted() -> bool:
            grant = await living.admit(support, "m", in_batch=True)
            return await outcome(grant.reserve(300)) == "admitted"

        assert not await admitted()
        await until(admitted)
        month, cost = [await store.get(key) for key in quota_keys("support", current_month())[3:5]]
        assert (month, cost) == (b"800", b"800000"), "the living router's reservations still count"
        # It was not dead after all.
        await lost.settle(100)
        await kept.settle(200)
        month, cost = [await store.get(key) for key in quota_keys("support", current_month())[3:5]]
        assert (month, cost) == (b"600", b"600000")
        renewing.cancel()

    run(work)


def test_without_redis_each_router_has_its_share_and_reports_it_later(server: OwnRedis) -> None:
    async def work() -> None:
        store = store_at(server.url, timeout_s=0.2)
        first_router = Quotas(store, 4)
        support = team(requests_per_minute=40, tokens_per_month=10_000, tokens_per_minute=4000)
        await (await first_router.admit(support)).reserve(10)
        server.stop()
        outcomes = Counter([await outcome(first_router.admit(support)) for _ in range(30)])
        assert outcomes == {"admitted": 9, "requests": 21}, "a quarter of the limit, minus the earlier request"
        server.start()
        support = team(tokens_per_month=10_000, tokens_per_minute=4000)
        await circuit_closes(store)
        server.stop()
        away = await first_router.admit(support)
        await away.reserve(900)
        assert await outcome(away.reserve(200)) == "tokens"
        await away.settle(500)
        server.start()
        await circuit_closes(store)
        await (await first_router.admit(support)).reserve(1)
        month = quota_keys("support", current_month())[3]
        assert await store.get(month) == b"501", "the month's count includes the use without Redis"

    run(work)


async def circuit_closes(store: RedisStore) -> None:
    async def closed() -> bool:
        return not store.circuit_open

    await until(closed)


def test_a_refusal_names_the_limit_and_when_to_try_again() -> None:
    quota = Quota(requests_per_minute=20, tokens_per_month=5000)
    minute, month = quota_exceeded("requests", quota, 7), quota_exceeded("month", quota, 0)
    assert minute.message == "Your team's limit of 20 requests a minute is reached. Try again in 7 s."
    assert minute.headers["Retry-After"] == "7"
    assert month.message == (
        "Your team's limit of 5000 tokens a month is reached. The limit resets at the start of the month (UTC)."
    )
    assert "Retry-After" not in month.headers


def test_sliding_window() -> None:
    clock = Clock(1000.0)
    window = SlidingWindow(clock)
    window.add(3)
    clock.now = 1030.5
    window.add(4)
    assert window.used() == 7
    assert window.wait_s(7, 1) == 30 and window.wait_s(5, 5) == 60
    clock.now = 1060.0
    assert window.used() == 4
    clock.now = 1090.5
    assert window.used() == 0


def test_money_of_the_month_is_exact_over_routers_and_counted_while_redis_is_away(server: OwnRedis) -> None:
    async def work() -> None:
        prices = Prices(PriceSettings(models=(ModelPrice(model="m", input=1, output=3),)))
        uses: list[float] = []

        def quotas(store: RedisStore) -> Quotas:
            budgets = Budgets(prices, UsageRecorder(store), lambda team, limit, share: uses.append(share))
            return Quotas(store, 1, budgets=budgets)

        store = store_at(server.url, timeout_s=10)
        routers, support = (
            [quotas(store), quotas(store_at(server.url, timeout_s=10))],
            Team("support", 0.0, cost_per_month=0.001),
        )
        first, second = [await router.admit(support, "m") for router in routers]
        await first.reserve(100, 200)  # 700 millionths
        assert await outcome(second.reserve(100, 100)) == "insufficient_quota"
        await first.settle(100, 100)  # 400 millionths
        assert uses == [pytest.approx(0.4)]
        await second.reserve(100, 100)
        await second.settle(100, 100)
        third = await routers[0].admit(support, "m")
        server.stop()
        assert await outcome(third.reserve(100, 100)) == "insufficient_quota", "it knows what was counted last"
        await third.reserve(100)
        await third.settle(200)
        server.start()
        await circuit_closes(store)
        fourth = await routers[0].admit(support, "m")
        await fourth.reserve(1)
        await fourth.settle(0)
        cost = quota_keys("support", current_month())[4]
        assert await store.get(cost) == b"200000", "that of the time away; the server has lost what was before"
        await fourth.reserve(200, 200)
        await fourth.settle(200, 200)
        assert await outcome(routers[0].admit(support, "m")) == "insufficient_quota"
        assert await outcome(routers[0].admit(support, "free")) == "admitted", "it has no price"

    run(work)
