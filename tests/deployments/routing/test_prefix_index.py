"""Routers share, in a real Redis, which replica has cached the start of a prompt."""

import asyncio

from cluster.redis_server import OwnRedis
from deployments.common.prefix import BLOCK_TOKENS, block_keys
from deployments.routing.prefix_index import PrefixIndex, PrefixLocation
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import store_at
from tests.deployments.waiting import until

FIRST = list(range(3 * BLOCK_TOKENS))
OPENING, ANSWER = [7001, 7002], [8001, 8002, 8003]


def blocks(prompt: list[int]) -> list[bytes]:
    """The block keys of a prompt without its last token."""
    return block_keys(prompt[:-1])


def test_the_next_turn_finds_the_replica_through_another_router() -> None:
    with redis_server(16) as server:
        asyncio.run(two_routers(server))


async def located(index: PrefixIndex, prompt: list[int], location: PrefixLocation) -> None:
    """Waits until the index has this location: the router that records it writes it in a background task."""

    async def fact() -> bool:
        return await index.lookup(blocks(prompt)) == location

    await until(fact)


async def two_routers(server: OwnRedis) -> None:
    stores = [store_at(server.url) for _ in range(2)]
    first, second = (PrefixIndex(store, "a", "engine") for store in stores)
    assert await first.lookup(blocks(FIRST)) == PrefixLocation()
    first.record(blocks(FIRST + OPENING), "r1")
    following = FIRST + ANSWER + FIRST
    known = PrefixLocation("r1", 2 * BLOCK_TOKENS)  # what opens the assistant's turn may be in the last block
    await located(second, following, known)
    second.record(blocks(following), "r2")
    await located(first, [*following, 1], PrefixLocation("r2", 5 * BLOCK_TOKENS))
    assert await first.lookup(blocks([*FIRST, 1])) == known
    # The last token of a prompt is always computed, so a block that ends with it does not count.
    assert await first.lookup(blocks(FIRST[: 2 * BLOCK_TOKENS])) == PrefixLocation()
    one_block = [*range(9000, 9000 + BLOCK_TOKENS), 1]
    first.record(blocks(one_block), "r1")
    await located(second, one_block, PrefixLocation("r1", BLOCK_TOKENS))
    assert await PrefixIndex(stores[0], "a", "another").lookup(blocks([*FIRST, 1])) == PrefixLocation()
    # Another Ray cluster serves the same model with replicas of its own.
    elsewhere = PrefixIndex(stores[0], "b", "engine")
    elsewhere.record(blocks(FIRST + OPENING), "theirs")
    await located(elsewhere, [*FIRST, 1], PrefixLocation("theirs", 2 * BLOCK_TOKENS))
    assert await first.lookup(blocks([*FIRST, 1])) == known
    await asyncio.to_thread(server.stop)
    first.record(blocks(FIRST), "r3")
    assert await first.lookup(blocks([*FIRST, 1])) == PrefixLocation()
    for store in stores:
        await store.close()


def test_a_prompt_shorter_than_a_block_asks_no_redis() -> None:
    async def ask() -> None:
        store = store_at("redis://127.0.0.1:1")
        assert await PrefixIndex(store, "a", "engine").lookup(blocks(FIRST[:BLOCK_TOKENS])) == PrefixLocation()
        assert not store.circuit_open
        await store.close()

    asyncio.run(ask())
