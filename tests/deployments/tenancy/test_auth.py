"""What metrics call teams: few have series of their own, and all routers agree which."""

import asyncio

from cluster.records.teams import Team, add_team, create_key
from cluster.redis_client import connect
from deployments.tenancy.auth import OTHER, Authenticator, metric_labels
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import store_at


def test_the_oldest_teams_or_those_that_the_settings_name() -> None:
    teams = [Team(f"t{number}", created=1000.0 - number) for number in range(100)]
    assert metric_labels(teams, ()) == {f"t{number}" for number in range(80, 100)}
    assert metric_labels([*teams, Team("new", 2000.0)], ()) == metric_labels(teams, ())
    assert metric_labels(teams, ("t1", "t2")) == {"t1", "t2"}


def test_a_caller_is_counted_under_its_own_name_or_among_others() -> None:
    async def labels(url: str, *keys: str) -> list[str]:
        store = store_at(url)
        door = Authenticator(store, "0.0.0.0", "default")
        await door.refresh()
        found = [door.authenticate({"authorization": f"Bearer {key}"}).label for key in keys]
        await store.close()
        return found

    with redis_server(16) as server, connect(server.url) as client:
        for number in range(22):
            add_team(client, Team(f"t{number:02}", float(number)))
        first, last = (create_key(client, team).secret for team in ("t00", "t21"))
        assert asyncio.run(labels(server.url, first, last)) == ["t00", OTHER]
