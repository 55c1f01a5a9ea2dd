"""Routers count each other over a real Redis."""

import asyncio

from cluster.redis_server import OwnRedis
from deployments.routing.heartbeat import heartbeat
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import store_at


def test_each_router_hears_how_many_there_are() -> None:
    with redis_server(16) as server:
        asyncio.run(come_and_go(server))


async def come_and_go(server: OwnRedis) -> None:
    stores = [store_at(server.url) for _ in range(3)]
    told: list[int] = []
    routers = []
    for store in stores:
        routers.append(asyncio.create_task(heartbeat(store, told.append)))
        await asyncio.sleep(0.2)
    assert told == [1, 2, 3]
    routers[0].cancel()
    await asyncio.gather(routers[0], return_exceptions=True)
    late = asyncio.create_task(heartbeat(stores[0], told.append))
    await asyncio.sleep(0.2)
    assert told == [1, 2, 3, 3], "one went as it should, and another came"
    for task in (*routers, late):
        task.cancel()
    await asyncio.gather(*routers, late, return_exceptions=True)
    for store in stores:
        await store.close()
