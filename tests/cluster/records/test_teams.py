"""Teams and keys in a real Redis: what a key rotation keeps, and which keys it refuses."""

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from cluster.records import teams
from cluster.records.teams import ADMIN, AlreadyExists, NotFound, Team, TeamsError, UnknownKey
from cluster.redis_client import connect
from tests.conftest import redis_server

DAY_S = 86_400.0


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with redis_server(16) as server, connect(server.url) as connected:
        teams.add_team(connected, Team("support", 0.0))
        yield connected


def owner(client: Any, secret: str, now: float | None = None) -> str | None:
    _, team = teams.read_registry(client).owner(secret, time.time() if now is None else now)
    return team.name if team else None


@pytest.mark.parametrize("team", ["support", ADMIN])
def test_a_rotated_key_expires_when_the_old_one_would_have(client: Any, team: str) -> None:
    old = teams.create_key(client, team, "bot", 30 * DAY_S)
    new = teams.rotate_key(client, old.key.id, DAY_S)
    assert (new.key.team, new.key.label, new.key.ends) == (team, "bot", old.key.ends) and new.key.ends > 0
    assert teams.read_key(client, old.key.id).ends == pytest.approx(time.time() + DAY_S, abs=5)
    assert owner(client, new.secret) == owner(client, old.secret) == (team or None)
    with pytest.raises(UnknownKey, match="expired"):
        owner(client, new.secret, old.key.ends)


def test_a_key_that_never_expires_is_replaced_by_one_that_never_expires(client: Any) -> None:
    old = teams.create_key(client, "support")
    assert teams.rotate_key(client, old.key.id, DAY_S).key.ends == 0


def test_the_grace_never_makes_the_old_key_last_longer(client: Any) -> None:
    old = teams.create_key(client, "support", expires_in_s=60)
    new = teams.rotate_key(client, old.key.id, DAY_S)
    assert teams.read_key(client, old.key.id).ends == new.key.ends == old.key.ends


def test_keys_that_have_ended_are_not_rotated(client: Any) -> None:
    expired = teams.create_key(client, "support", expires_in_s=-1)
    revoked = teams.create_key(client, "support")
    teams.end_key(client, revoked.key.id)
    before = len(teams.read_registry(client).keys)
    for created in (expired, revoked):
        with pytest.raises(TeamsError, match="create a new key"):
            teams.rotate_key(client, created.key.id, DAY_S)
    with pytest.raises(NotFound, match="no key"):
        teams.rotate_key(client, "nothing", DAY_S)
    assert len(teams.read_registry(client).keys) == before


def test_a_replaced_key_is_not_rotated_again(client: Any) -> None:
    old = teams.create_key(client, "support")
    new = teams.rotate_key(client, old.key.id, DAY_S)
    with pytest.raises(TeamsError, match=new.key.id):
        # Otherwise the newest key would end with the first one's grace.
        teams.rotate_key(client, old.key.id, DAY_S)
    assert teams.rotate_key(client, new.key.id, DAY_S).key.ends == 0


def test_a_record_of_another_format_locks_nobody_out(client: Any) -> None:
    created = teams.create_key(client, "support")
    client.hset(teams.KEYS, "odd", b'{"id": 1}')
    client.hset(teams.TEAMS, "odd", b'{"name": "no spaces", "created": 0}')
    assert owner(client, created.secret) == "support"
    older = {name: value for name, value in msgspec.to_builtins(created.key).items() if name != "replaced_by"}
    client.hset(teams.KEYS, created.key.id, msgspec.json.encode(older))
    assert teams.read_key(client, created.key.id) == created.key, "as an earlier version stored it"


def test_a_team_is_added_once_and_leaves_with_its_keys(client: Any) -> None:
    teams.add_team(client, Team("brief", 0.0))
    with pytest.raises(AlreadyExists, match="brief already exists"):
        teams.add_team(client, Team("brief", 0.0))
    created = teams.create_key(client, "brief")
    assert teams.remove_team(client, "brief") == 1
    with pytest.raises(UnknownKey, match="Incorrect"):
        owner(client, created.secret)
    with pytest.raises(NotFound, match="no team is named brief"):
        teams.create_key(client, "brief")
