"""A Redis Cluster of three nodes: each step touches the keys of one node, and the work spreads over all of them."""

import asyncio
import secrets
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from redis.crc import key_slot

from cluster.records.activity import KEYS as ACTIVITY_KEYS
from cluster.records.cache import key_of, pack, show
from cluster.records.cache_search import delete, search
from cluster.records.team_records import Team
from cluster.records.team_tables import CHANGES, KEYS, LOCKED, TEAMS, VERSION
from cluster.records.teams import add_team, create_key, end_key, read_registry
from cluster.redis_client import connect
from deployments.cache.flight_store import flight_keys
from deployments.cache.single_flight import SingleFlight
from deployments.common.prefix import BLOCK_TOKENS, block_keys
from deployments.routing.prefix_index import PrefixIndex, PrefixLocation
from deployments.tenancy.auth import Authenticator
from deployments.tenancy.quota_counters import quota_keys
from tests.cluster.test_redis_client import with_cluster
from tests.deployments.cache.test_answers import store_at
from tests.deployments.cache.test_single_flight import BATCHES, die, followed, ids, join, new_key
from tests.deployments.waiting import until

FLIGHTS = 60


def slots(keys: list[str]) -> set[int]:
    return {key_slot(key.encode()) for key in keys}


def test_keys_that_are_used_together_have_one_hash_tag() -> None:
    assert len(slots(flight_keys(new_key()))) == 1
    assert len(slots([TEAMS, KEYS, VERSION, LOCKED, CHANGES])) == 1
    assert len(slots(list(quota_keys("support", "2026-11")))) == 1
    assert len(slots(list(ACTIVITY_KEYS))) == 1
    assert len(slots([key for _ in range(100) for key in flight_keys(new_key())])) > 90


@pytest.mark.slow
def test_flights_teams_and_prefixes_over_three_nodes() -> None:
    with tempfile.TemporaryDirectory(prefix="dray-c-") as folder, with_cluster(Path(folder), 3) as url:
        asyncio.run(asyncio.wait_for(flights(url), 60))
        asyncio.run(asyncio.wait_for(teams(url), 60))
        asyncio.run(asyncio.wait_for(prefixes(url), 60))
        cached_answers(url)


async def flights(url: str) -> None:
    stores = [store_at(url, timeout_s=2.0) for _ in range(2)]
    first, second = (SingleFlight(store) for store in stores)
    keys = [new_key() for _ in range(FLIGHTS)]
    leaders = [await join(first, key) for key in keys]
    followers = [await join(second, key) for key in keys]
    for leader in leaders:
        for batch in BATCHES[:2]:
            leader.record(0, 0, batch)
    assert [ids(await followed(follower, 2)) for follower in followers] == [[1, 2, 3]] * FLIGHTS
    streams = [len(node.keys("dray:tokens:*")) for node in nodes(url)]
    assert sum(streams) == FLIGHTS and min(streams) > 0, "each node has some"
    dead, ended = leaders[: FLIGHTS // 2], leaders[FLIGHTS // 2 :]
    for leader in ended:
        leader.record(0, 0, BATCHES[3])
        await leader.complete(b"answer", 100)
    assert [ids(await followed(follower)) for follower in followers[FLIGHTS // 2 :]] == [[1, 2, 3, 7]] * len(ended)
    await die(first, *dead)
    heirs = followers[: FLIGHTS // 2]
    await until(lambda: all(heir.role == "lead" for heir in heirs))
    for heir in heirs:
        heir.record(0, 0, BATCHES[3])
        await heir.complete(b"answer", 100)
    stored = [await stores[1].get(key) for key in keys]
    assert stored == [b"answer"] * FLIGHTS
    for store in stores:
        await store.close()


async def teams(url: str) -> None:
    store = store_at(url, timeout_s=2.0)
    router = Authenticator(store, "0.0.0.0", "default")
    with connect(url) as client:
        add_team(client, Team("support", 0.0))
        await router.refresh()
        created = create_key(client, "support")
        await router.refresh()
        assert router.authenticate({"x-api-key": created.secret}).name == "support"
        end_key(client, created.key.id)
        await router.refresh()
        assert router.check_loaded() == read_registry(client)
    await store.close()


async def prefixes(url: str) -> None:
    store = store_at(url, timeout_s=2.0)
    for number in range(12):
        index = PrefixIndex(store, "a", f"application-{number}")
        blocks = block_keys([secrets.randbelow(1000) for _ in range(3 * BLOCK_TOKENS)])
        index.record(blocks, "replica")
        while await index.lookup(blocks) != PrefixLocation("replica", 2 * BLOCK_TOKENS):
            await asyncio.sleep(0.01)
    await store.close()


def nodes(url: str) -> list[Any]:
    """A client of each node."""
    ports = [int(host.rpartition(":")[2]) for host in url.partition("://")[2].split(",")]
    return [redis.Redis(port=port) for port in ports]


def cached_answers(url: str) -> None:
    """A search goes on from node to node."""
    body = msgspec.msgpack.encode(((["", "An answer.", "stop"],), (10, 5, 0, 0), 1.0, "", "A question?"))
    digests = {f"{number:040x}" for number in range(60)}
    with connect(url) as client:
        for digest in digests:
            client.set(key_of("m", "n", digest), pack(body, key_of("m", "n", digest)))
        found: list[str] = []
        cursor, pages = "", 0
        while cursor or not pages:
            page = search(client, "question", limit=1, cursor=cursor)
            found += [answer.key for answer in page.data]
            cursor, pages = page.next, pages + 1
        assert set(found) == digests and pages >= 3
        assert delete(client, found[0]) == ("m", "n") and show(client, found[0]) is None
