"""Routers read a change of teams and keys as a change, and everything only where they must."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from cluster.records.team_records import Team
from cluster.records.team_tables import CHANGES, VERSION, unlock
from cluster.records.teams import (
    Registry,
    add_team,
    change_team,
    create_key,
    end_key,
    read_registry,
    remove_key,
    remove_team,
)
from cluster.redis_client import connect
from deployments.tenancy.auth import Authenticator
from deployments.tenancy.registry_reader import RegistryReader
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import store_at


@pytest.fixture
def server() -> Iterator[tuple[str, Any]]:
    with redis_server(32) as own, connect(own.url) as client:
        yield own.url, client


def with_router(url: str, work: Callable[[Authenticator], Awaitable[None]]) -> None:
    async def run() -> None:
        store = store_at(url)
        router = Authenticator(store, "0.0.0.0", "default")
        await router.refresh()
        try:
            await work(router)
        finally:
            await store.close()

    asyncio.run(run())


def whole_reads(client: Any) -> int:
    """How often somebody has read a whole table since the statistics were reset."""
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("hscan", "hgetall"))


def same(router: Authenticator, client: Any) -> bool:
    """Whether a router knows what is stored."""
    return router.check_loaded() == read_registry(client)


def test_every_kind_of_change_is_read_as_a_change(server: tuple[str, Any]) -> None:
    url, client = server
    for number in range(20):
        add_team(client, Team(f"t{number}", float(number)))
        create_key(client, f"t{number}")

    async def work(router: Authenticator) -> None:
        old = create_key(client, "t1")
        changes: list[Callable[[], object]] = [
            lambda: add_team(client, Team("new", 99.0)),
            lambda: create_key(client, "new"),
            lambda: change_team(client, "new", weight=3.0),
            lambda: end_key(client, old.key.id),
            lambda: remove_key(client, old.key.id),
            lambda: remove_team(client, "t2"),
        ]
        for change in changes:
            change()
            client.config_resetstat()
            await router.refresh()
            assert whole_reads(client) == 0
            assert same(router, client)
        assert "t2" not in router.check_loaded().teams and len(router.check_loaded().keys) == 20

    with_router(url, work)


@pytest.mark.parametrize("trouble", ["unlocked", "trimmed", "an earlier version wrote", "lost", "too large"])
def test_all_is_read_where_the_changes_are_not_known(server: tuple[str, Any], trouble: str) -> None:
    url, client = server
    add_team(client, Team("first", 0.0))
    keys = [create_key(client, "first") for _ in range(600 if trouble == "too large" else 3)]
    add_team(client, Team("second", 1.0))

    async def work(router: Authenticator) -> None:
        if trouble == "unlocked":
            assert unlock(client) == 3
            create_key(client, "second")
        elif trouble == "trimmed":
            create_key(client, "second")
            client.delete(CHANGES)
            create_key(client, "second")
        elif trouble == "an earlier version wrote":
            client.hdel("dray:{teams}:keys", keys[0].key.id)
            client.incr(VERSION)
            create_key(client, "second")
        elif trouble == "lost":
            client.flushall()
            add_team(client, Team("third", 2.0))
            create_key(client, "third")
        else:
            assert remove_team(client, "first") == 600
        client.config_resetstat()
        await router.refresh()
        assert whole_reads(client) > 0
        assert same(router, client)
        # From here on changes are read again.
        add_team(client, Team("last", 3.0))
        client.config_resetstat()
        await router.refresh()
        assert whole_reads(client) == 0
        assert same(router, client)

    with_router(url, work)


def test_a_stream_of_data_that_are_lost_stops_no_change(server: tuple[str, Any]) -> None:
    url, client = server
    for number in range(5):
        add_team(client, Team(f"t{number}", float(number)))
    client.set(VERSION, 2)  # as after a restore by hand
    add_team(client, Team("new", 9.0))

    async def work(router: Authenticator) -> None:
        add_team(client, Team("newer", 10.0))
        await router.refresh()
        assert same(router, client) and len(router.check_loaded().teams) == 7

    with_router(url, work)


def test_what_others_change_during_a_read_of_all_is_not_missed(server: tuple[str, Any]) -> None:
    url, client = server
    for number in range(300):
        add_team(client, Team(f"t{number}", float(number)))
    keys = [create_key(client, f"t{number}") for number in range(300)]

    async def work(_: Authenticator) -> None:
        store = store_at(url)
        reader = RegistryReader(store)
        version, changed = await reader.version(), iter(range(300))
        scan = store.scan_hash

        async def while_others_write(name: str, cursor: int, count: int) -> tuple[int, dict[bytes, bytes]]:
            with suppress(StopIteration):
                number = next(changed)
                change_team(client, f"t{number}", weight=5.0)
                end_key(client, keys[number].key.id)
                remove_team(client, f"t{299 - number}")
            return await scan(name, cursor, 20)

        store.scan_hash = while_others_write  # type: ignore[method-assign]
        registry: Registry | None = await reader.read_all()
        assert registry is not None and registry.version == version
        registry = await reader.read_changes(registry, await reader.version())
        assert registry == read_registry(client) and len(registry.teams) < 300
        await store.close()

    with_router(url, work)
