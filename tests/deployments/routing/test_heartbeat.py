"""Routers count each other over a real Redis."""

import asyncio

from cluster.redis_server import OwnRedis
from deployments.routing.heartbeat import heartbeat
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import store_at
from tests.deployments.waiting import until


def test_each_router_learns_how_many_there_are() -> None:
    with redis_server(16) as server:
        asyncio.run(join_and_leave(server))


async def join_and_leave(server: OwnRedis) -> None:
    stores = [store_at(server.url) for _ in range(3)]
    counts: list[int] = []

    async def counted(*expected: int) -> None:
        async def fact() -> bool:
            return len(counts) >= len(expected)

        await until(fact)
        assert counts == list(expected)

    routers = []
    for number, store in enumerate(stores, 1):
        routers.append(asyncio.create_task(heartbeat(store, counts.append)))
        await counted(*range(1, number + 1))
    routers[0].cancel()
    await asyncio.gather(routers[0], return_exceptions=True)
    late = asyncio.create_task(heartbeat(stores[0], counts.append))
    await counted(1, 2, 3, 3)  # a router has stopped properly, and another has joined
    for task in (*routers, late):
        task.cancel()
    await asyncio.gather(*routers, late, return_exceptions=True)
    for store in stores:
        await store.close()
