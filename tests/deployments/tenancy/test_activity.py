"""The last requests and errors of routers, in a real Redis: bounded, and forgotten after an hour."""

import asyncio
from collections.abc import Iterator

import pytest

from cluster.records.activity import KEPT_S, MAX_REQUESTS, MAX_ROUTERS, RequestRecord, read_activity
from cluster.redis_client import connect
from cluster.redis_server import OwnRedis
from cluster.reports.activity import last_errors, last_requests
from deployments.tenancy.activity import ActivityLog
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import closing, store_at
from tests.deployments.routing.clock import Clock


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


def request(number: int, at: float) -> RequestRecord:
    return RequestRecord(f"id{number}", at, "t", "m", "/v1/x", 200, "", "miss", False, 0.1, 0.2, 0.3, 4, 5)


def test_reports_are_bounded_and_forgotten_after_an_hour(server: OwnRedis) -> None:
    clock = Clock()
    clock.now = 1_000_000.0

    async def work() -> None:
        store = store_at(server.url, timeout_s=10)
        busy = ActivityLog(store, "busy", clock)
        for number in range(3 * MAX_REQUESTS):
            busy.add(request(number, clock.now + number))
        for number in range(1000):
            busy.count_error(400 + number % 5, f"code{number}", "t", "m")
        busy.count_error(400, "code0", "t", "m")
        await busy.publish()
        with connect(server.url) as client:
            reports = read_activity(client, clock.now)
            newest = last_requests(reports, 1000)
            assert [each.id for each in newest] == [f"id{3 * MAX_REQUESTS - 1 - n}" for n in range(MAX_REQUESTS)]
            errors = last_errors(reports, clock.now)
            assert sum(error.count for error in errors) == 1001 and len(errors) == 205
            assert {error.code for error in errors[:5]} == {"other"} and all(error.advice for error in errors)

            clock.now += KEPT_S - 1
            for number in range(MAX_ROUTERS + 10):
                router = ActivityLog(store, f"r{number}", clock)
                router.add(request(0, clock.now))
                await router.publish()
                clock.now += 0.01
            routers = {report.router for report in read_activity(client, clock.now)}
            assert routers == {f"r{number}" for number in range(10, MAX_ROUTERS + 10)}, "the oldest have gone"
            assert client.hlen("dray:{teams}:activity") == MAX_ROUTERS
            clock.now += KEPT_S + 1
            assert read_activity(client, clock.now) == []
            await busy.publish()
            [report] = read_activity(client, clock.now)
            assert report.errors == [] and client.hlen("dray:{teams}:activity") == 1

    asyncio.run(closing(work()))


def test_without_redis_it_is_published_later(server: OwnRedis) -> None:
    async def work() -> None:
        store = store_at(server.url, timeout_s=10)
        activity = ActivityLog(store, "r")
        server.stop()
        activity.count_error(500, "internal_error", "", "")
        await activity.publish()
        server.start()
        async with asyncio.timeout(30):
            while True:
                await activity.publish()
                with connect(server.url) as client:
                    if read_activity(client, 0.0):
                        break
                await asyncio.sleep(0.05)

    asyncio.run(closing(work()))
