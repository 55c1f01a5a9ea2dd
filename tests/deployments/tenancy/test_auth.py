"""Authentication, and the metric labels of teams: few teams have their own series, and all routers choose the same."""

import asyncio
from typing import Any

import pytest

from cluster.records.team_records import Team
from cluster.records.team_tables import unlock
from cluster.records.teams import add_team, create_key, remove_team
from cluster.redis_client import connect
from deployments.common.errors import ApiError
from deployments.tenancy.auth import OTHER, Authenticator, metric_labels
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import store_at


def test_labels_are_the_oldest_teams_or_those_that_the_settings_name() -> None:
    teams = [Team(f"t{number}", created=1000.0 - number) for number in range(100)]
    assert metric_labels(teams, ()) == {f"t{number}" for number in range(80, 100)}
    assert metric_labels([*teams, Team("new", 2000.0)], ()) == metric_labels(teams, ())
    assert metric_labels(teams, ("t1", "t2")) == {"t1", "t2"}


def test_a_caller_is_counted_under_its_own_name_or_among_others() -> None:
    async def labels(url: str, *keys: str) -> list[str]:
        store = store_at(url)
        authenticator = Authenticator(store, "0.0.0.0", "default")
        await authenticator.refresh()
        callers = [authenticator.authenticate({"authorization": f"Bearer {key}"}) for key in keys]
        await store.close()
        return [caller.label for caller in callers]

    with redis_server(16) as server, connect(server.url) as client:
        for number in range(22):
            add_team(client, Team(f"t{number:02}", float(number)))
        first, last = (create_key(client, team).secret for team in ("t00", "t21"))
        assert asyncio.run(labels(server.url, first, last)) == ["t00", OTHER]


def test_a_refusal_says_what_to_do() -> None:
    async def refusals(url: str) -> list[ApiError]:
        store = store_at(url)
        authenticator, errors = Authenticator(store, "0.0.0.0", "default"), list[ApiError]()

        def refused(**headers: str) -> None:
            with pytest.raises(ApiError) as error:
                authenticator.authenticate(headers)
            errors.append(error.value)

        refused()
        await authenticator.refresh()
        refused()
        with connect(url) as client:
            add_team(client, Team("support", 0.0))
            expired = create_key(client, "support", expires_in_s=-1)
        await authenticator.refresh()
        refused()
        refused(authorization="Bearer wrong")
        refused(authorization=f"Bearer {expired.secret}")
        await store.close()
        return errors

    with redis_server(16) as server:
        errors = asyncio.run(refusals(server.url))
    assert [error.status for error in errors] == [503, 401, 401, 401, 401]
    for error, words in zip(
        errors, ("Try again shortly", "dray keys create TEAM", "Bearer KEY", "Incorrect", "expired"), strict=True
    ):
        assert words in error.message


def test_a_service_that_had_keys_never_answers_without_one_by_itself() -> None:
    async def work(url: str, client: Any) -> None:
        store = store_at(url)
        routers = [Authenticator(store, host, "default") for host in ("127.0.0.1", "0.0.0.0")]

        async def answers_without_key() -> list[bool]:
            for router in routers:
                await router.refresh()
            restarted = Authenticator(store, "127.0.0.1", "default")
            await restarted.refresh()
            return [not router.needs_key for router in (*routers, restarted)]

        assert await answers_without_key() == [True, False, True]
        add_team(client, Team("support", 0.0))
        assert await answers_without_key() == [True, False, True]
        create_key(client, "support")
        assert await answers_without_key() == [False, False, False]
        remove_team(client, "support")
        assert await answers_without_key() == [False, False, False]
        with pytest.raises(ApiError, match="all have been removed") as refused:
            routers[0].authenticate({})
        assert refused.value.status == 401
        unlock(client)
        assert await answers_without_key() == [True, False, True]
        add_team(client, Team("support", 0.0))
        create_key(client, "support")
        assert not any(await answers_without_key())
        client.flushall()
        assert (await answers_without_key())[:2] == [False, False], "a router that knew of keys outlives lost data"
        await store.close()

    with redis_server(16) as server, connect(server.url) as client:
        asyncio.run(work(server.url, client))
