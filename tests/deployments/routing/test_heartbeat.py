"""Routers count each other over a real Redis."""

import asyncio

from cluster.redis_server import OwnRedis
from deployments.routing.heartbeat import Heartbeat, RouterReports
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import store_at
from tests.deployments.waiting import until


def idle() -> bytes:
    return b""


def test_each_router_learns_how_many_there_are() -> None:
    with redis_server(16) as server:
        asyncio.run(join_and_leave(server))


async def join_and_leave(server: OwnRedis) -> None:
    stores = [store_at(server.url) for _ in range(3)]
    counts: list[int] = []

    def count(reports: RouterReports | None) -> None:
        assert reports is not None and not reports.reports
        counts.append(reports.routers)

    async def counted(*expected: int) -> None:
        async def fact() -> bool:
            return len(counts) >= len(expected)

        await until(fact)
        assert counts == list(expected)

    routers = []
    for number, store in enumerate(stores, 1):
        routers.append(asyncio.create_task(Heartbeat(store, "a", idle, count).run()))
        await counted(*range(1, number + 1))
    routers[0].cancel()
    await asyncio.gather(routers[0], return_exceptions=True)
    late = asyncio.create_task(Heartbeat(stores[0], "a", idle, count).run())
    await counted(1, 2, 3, 3)  # a router has stopped properly, and another has joined
    for task in (*routers, late):
        task.cancel()
    await asyncio.gather(*routers, late, return_exceptions=True)
    for store in stores:
        await store.close()


def test_routers_read_what_the_others_with_requests_report_and_forget_those_that_stop() -> None:
    with redis_server(16) as server:
        asyncio.run(report_and_stop(server))


async def report_and_stop(server: OwnRedis) -> None:
    stores = [store_at(server.url) for _ in range(3)]
    told: list[RouterReports | None] = []
    routers = [
        asyncio.create_task(Heartbeat(stores[0], "a", lambda: b"first", told.append).run()),
        asyncio.create_task(Heartbeat(stores[1], "a", lambda: b"second", lambda _: None).run()),
        asyncio.create_task(Heartbeat(stores[2], "a", idle, lambda _: None).run()),
    ]

    async def reported(routers: int, *expected: bytes) -> None:
        async def fact() -> bool:
            return (last := told[-1] if told else None) is not None and (
                (last.routers, sorted(last.reports.values())) == (routers, sorted(expected))
                and last.reports[last.own] == b"first"
            )

        await until(fact)

    await reported(3, b"first", b"second")
    routers[1].cancel()
    await asyncio.gather(routers[1], return_exceptions=True)
    await reported(2, b"first")
    await asyncio.to_thread(server.stop)

    async def gone() -> bool:
        return told[-1] is None

    await until(gone)
    for task in routers:
        task.cancel()
    await asyncio.gather(*routers, return_exceptions=True)
    for store in stores:
        await store.close()


def test_only_routers_of_one_cluster_divide_its_engines_while_all_count_for_quotas() -> None:
    with redis_server(16) as server:
        asyncio.run(two_clusters(server))


async def two_clusters(server: OwnRedis) -> None:
    stores = [store_at(server.url) for _ in range(3)]
    told: dict[int, list[RouterReports | None]] = {number: [] for number in range(3)}
    routers = [
        Heartbeat(stores[0], "a", lambda: b"of a", told[0].append),
        Heartbeat(stores[1], "b", lambda: b"of b", told[1].append),
        Heartbeat(stores[2], "b", idle, told[2].append),
    ]
    for router in routers * 2:
        await router.send()
    last = [reports for _, (*_, reports) in sorted(told.items()) if reports is not None]
    assert [(one.routers, one.everywhere) for one in last] == [(1, 3), (2, 3), (2, 3)]
    assert [list(one.reports.values()) for one in last] == [[b"of a"], [b"of b"], [b"of b"]]
    for store in stores:
        await store.close()
