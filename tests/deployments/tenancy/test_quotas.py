"""Quotas against a real server: exact over several routers, settled by what was used, and never without a limit."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator

import pytest

from cluster.records.teams import Quota, Team
from cluster.redis_server import OwnRedis
from deployments.common.errors import ApiError
from deployments.tenancy.quotas import QuotaGrant, Quotas, SlidingWindow
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import store_at


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


def run(work: Callable[[], Coroutine[None, None, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await work()

    asyncio.run(bounded())


def team(**quota: int) -> Team:
    return Team("support", 0.0, quota=Quota(**quota))


async def try_to(work: Coroutine[None, None, QuotaGrant | None]) -> str:
    try:
        await work
    except ApiError as error:
        assert error.status == 429 and error.body.error.message
        return error.body.error.type
    return "let in"


def test_requests_a_minute_are_exact_over_routers(server: OwnRedis) -> None:
    async def work() -> None:
        routers = [Quotas(store_at(server.url), 3) for _ in range(3)]
        asked = team(requests_per_minute=50)
        seen = Counter(await asyncio.gather(*(try_to(routers[n % 3].admit(asked)) for n in range(200))))
        assert seen == {"let in": 50, "requests": 150}
        with pytest.raises(ApiError) as refused:
            await routers[0].admit(asked)
        assert 50 <= int(refused.value.headers["Retry-After"]) <= 60
        other = Team("other", 0.0, quota=asked.quota)
        headers = (await routers[0].admit(other)).headers
        assert headers == {
            "x-ratelimit-limit-requests": "50",
            "x-ratelimit-remaining-requests": "49",
            "x-ratelimit-reset-requests": "60s",
        }

    run(work)


def test_requests_at_a_time_are_freed_by_their_end_and_by_their_routers_death(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        one, other = Quotas(store_at(server.url), 2), Quotas(store_at(server.url), 2)
        asked = team(requests_at_a_time=3)
        let_in = [await one.admit(asked), await other.admit(asked), await one.admit(asked)]
        assert await try_to(other.admit(asked)) == "requests"
        await let_in[1].release()
        again = await other.admit(asked)
        assert await try_to(one.admit(asked)) == "requests"
        await again.release()
        monkeypatch.setattr("deployments.tenancy.quotas._LEASE_S", 1)
        dying = await other.admit(asked)  # its router never says another word
        assert await try_to(one.admit(asked)) == "requests"
        renewing = asyncio.create_task(one.renew_forever())
        while await try_to(one.admit(asked)) != "let in":
            await asyncio.sleep(0.1)
        renewing.cancel()
        assert dying

    run(work)


def test_tokens_are_reserved_and_settled(server: OwnRedis) -> None:
    async def work() -> None:
        one, other = Quotas(store_at(server.url), 2), Quotas(store_at(server.url), 2)
        asked = team(tokens_per_minute=1000, tokens_per_month=1500)
        first, second, third = [await one.admit(asked), await other.admit(asked), await one.admit(asked)]
        await first.reserve(600)
        assert first.headers["x-ratelimit-remaining-tokens"] == "400"
        assert await try_to(second.reserve(600)) == "tokens"
        await first.settle(200)
        await second.reserve(600)
        await second.settle(700)
        assert await try_to(third.reserve(200)) == "tokens"
        await third.reserve(100)
        assert await try_to(one.admit(asked)) == "tokens"
        await third.settle(100)

    run(work)


def test_the_months_tokens_end(server: OwnRedis) -> None:
    async def work() -> None:
        one = Quotas(store_at(server.url), 1)
        asked = team(tokens_per_month=1000)
        first = await one.admit(asked)
        await first.reserve(400)
        await first.settle(900)
        second = await one.admit(asked)
        assert await try_to(second.reserve(200)) == "insufficient_quota"
        await second.reserve(100)
        await second.settle(100)
        assert await try_to(one.admit(asked)) == "insufficient_quota"

    run(work)


def test_without_redis_each_router_has_its_share_and_then_tells(server: OwnRedis) -> None:
    async def work() -> None:
        one = Quotas(store_at(server.url, timeout_s=0.2), 4)
        asked = team(requests_per_minute=40, tokens_per_month=10_000, tokens_per_minute=4000)
        await (await one.admit(asked)).reserve(10)
        server.stop()
        seen = Counter([await try_to(one.admit(asked)) for _ in range(30)])
        assert seen == {"let in": 9, "requests": 21}, "a quarter of the limit, the one before counted in"
        server.start()
        asked = team(tokens_per_month=10_000, tokens_per_minute=4000)
        await asyncio.sleep(1.2)  # until the circuit closes
        server.stop()
        away = await one.admit(asked)
        await away.reserve(900)
        assert await try_to(away.reserve(200)) == "tokens"
        await away.settle(500)
        server.start()
        await asyncio.sleep(1.2)
        await (await one.admit(asked)).reserve(1)
        assert one._own["support"].month == 501, "what was used meanwhile is in the month's count"

    run(work)


def test_window() -> None:
    now = [1000.0]
    window = SlidingWindow(lambda: now[0])
    window.add(3)
    now[0] = 1030.5
    window.add(4)
    assert window.used() == 7
    assert window.wait_s(7, 1) == 30 and window.wait_s(5, 5) == 60
    now[0] = 1060.0
    assert window.used() == 4
    now[0] = 1090.5
    assert window.used() == 0
