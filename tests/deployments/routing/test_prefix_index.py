"""Routers tell each other over a real Redis where a prompt's beginning is cached."""

import asyncio

from cluster.redis_server import OwnRedis
from deployments.common.prefix import BLOCK_TOKENS, block_keys
from deployments.routing.prefix_index import PrefixIndex, PrefixLocation
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import store_at

FIRST = list(range(3 * BLOCK_TOKENS))
OPENING, ANSWER = [7001, 7002], [8001, 8002, 8003]


def blocks(prompt: list[int]) -> list[bytes]:
    """Of a prompt, without its last token."""
    return block_keys(prompt[:-1])


def test_the_next_turn_finds_the_replica_through_another_router() -> None:
    with redis_server(16) as server:
        asyncio.run(two_routers(server))


async def two_routers(server: OwnRedis) -> None:
    stores = [store_at(server.url) for _ in range(2)]
    here, there = (PrefixIndex(store, "engine") for store in stores)
    assert await here.lookup(blocks(FIRST)) == PrefixLocation()
    here.record(blocks(FIRST + OPENING), "r1")
    await asyncio.sleep(0.2)
    following = FIRST + ANSWER + FIRST
    assert await there.lookup(blocks(following)) == PrefixLocation("r1", len(FIRST))
    there.record(blocks(following), "r2")
    await asyncio.sleep(0.2)
    assert await here.lookup(blocks([*following, 1])) == PrefixLocation("r2", 6 * BLOCK_TOKENS)
    assert await here.lookup(blocks([*FIRST, 1])) == PrefixLocation("r1", len(FIRST))
    # Of a prompt that ends with its block, the last token is computed anew; so that block does not count.
    assert await here.lookup(blocks(FIRST)) == PrefixLocation("r1", 2 * BLOCK_TOKENS)
    assert await PrefixIndex(stores[0], "another").lookup(blocks([*FIRST, 1])) == PrefixLocation()
    await asyncio.to_thread(server.stop)
    here.record(blocks(FIRST), "r3")
    assert await here.lookup(blocks([*FIRST, 1])) == PrefixLocation()
    for store in stores:
        await store.close()


def test_a_prompt_of_less_than_a_block_asks_nobody() -> None:
    async def ask() -> None:
        store = store_at("redis://127.0.0.1:1")
        assert await PrefixIndex(store, "engine").lookup(blocks(FIRST[:BLOCK_TOKENS])) == PrefixLocation()
        assert not store.circuit_open
        await store.close()

    asyncio.run(ask())
