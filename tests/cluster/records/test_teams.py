"""Teams and keys in a real Redis: what a key rotation keeps, and which keys it refuses."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from cluster.records import teams
from cluster.records.team_records import ADMIN, AlreadyExists, CreatedKey, NotFound, Team, TeamsError, UnknownKey
from cluster.records.team_tables import KEYS, LOCKED, TEAMS, unlock
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
    client.hset(KEYS, "odd", b'{"id": 1}')
    client.hset(TEAMS, "odd", b'{"name": "no spaces", "created": 0}')
    assert owner(client, created.secret) == "support"
    older = {name: value for name, value in msgspec.to_builtins(created.key).items() if name != "replaced_by"}
    client.hset(KEYS, created.key.id, msgspec.json.encode(older))
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


class Interleaved:
    """A client that lets others in just before its second call: between what a change reads and what it writes."""

    def __init__(self, client: Any, others: Callable[[], object]) -> None:
        self._client = client
        self._others = others
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self._calls += 1
            if self._calls == 2:
                self._others()
            return method(*arguments, **options)

        return call


def test_a_revoke_in_the_middle_of_a_rotation_holds(client: Any) -> None:
    old = teams.create_key(client, "support")
    before = len(teams.read_registry(client).keys)
    with pytest.raises(TeamsError, match="create a new key"):
        teams.rotate_key(Interleaved(client, lambda: teams.end_key(client, old.key.id)), old.key.id, DAY_S)
    with pytest.raises(UnknownKey, match="revoked"):
        owner(client, old.secret)
    assert len(teams.read_registry(client).keys) == before, "no new key was made from the revoked one"


def test_of_two_rotations_at_once_one_wins(client: Any) -> None:
    old = teams.create_key(client, "support")
    with pytest.raises(TeamsError, match="already replaced"):
        teams.rotate_key(Interleaved(client, lambda: teams.rotate_key(client, old.key.id, DAY_S)), old.key.id, DAY_S)


def test_a_key_made_while_its_team_is_removed_does_not_outlive_it(client: Any) -> None:
    """Otherwise it would open the next team of that name."""
    teams.add_team(client, Team("fleeting", 0.0))
    with pytest.raises(NotFound, match="fleeting"):
        teams.create_key(Interleaved(client, lambda: teams.remove_team(client, "fleeting")), "fleeting")
    teams.add_team(client, Team("fleeting", 0.0))
    made: list[CreatedKey] = []
    removing = Interleaved(client, lambda: made.append(teams.create_key(client, "fleeting")))
    assert teams.remove_team(removing, "fleeting") == 1
    teams.add_team(client, Team("fleeting", 0.0))
    with pytest.raises(UnknownKey):
        owner(client, made[0].secret)


def test_changes_of_others_are_kept(client: Any) -> None:
    teams.add_team(client, Team("busy", 0.0))
    teams.change_team(Interleaved(client, lambda: teams.change_team(client, "busy", weight=3.0)), "busy", models=("a",))
    assert teams.read_team(client, "busy") == Team("busy", 0.0, models=("a",), weight=3.0)


def test_only_a_key_that_has_ended_is_removed(client: Any) -> None:
    created = teams.create_key(client, "support")
    with pytest.raises(TeamsError, match="revoke it first"):
        teams.remove_key(client, created.key.id)
    assert owner(client, created.secret) == "support"
    teams.end_key(client, created.key.id)
    teams.remove_key(client, created.key.id)
    with pytest.raises(NotFound, match="no key has the id"):
        teams.remove_key(client, created.key.id)


@pytest.mark.parametrize("end", ["remove the team", "remove the key", "an unreadable record"])
def test_once_there_was_a_key_it_stays_locked_until_it_is_unlocked(end: str) -> None:
    with redis_server(16) as server, connect(server.url) as client:
        teams.add_team(client, Team("support", 0.0))
        assert not teams.read_registry(client).locked, "a team alone locks nothing"
        created = teams.create_key(client, "support")
        assert teams.read_registry(client).locked
        if end == "remove the team":
            teams.remove_team(client, "support")
        elif end == "remove the key":
            teams.end_key(client, created.key.id)
            teams.remove_key(client, created.key.id)
        else:
            client.hset(KEYS, created.key.id, b"{}")
        registry = teams.read_registry(client)
        assert registry.locked and registry.keys == {}
        assert unlock(client) == (end == "an unreadable record")
        assert not teams.read_registry(client).locked and teams.read_registry(client).version > registry.version


def test_keys_of_an_earlier_version_lock_it_too() -> None:
    with redis_server(16) as server, connect(server.url) as client:
        teams.add_team(client, Team("support", 0.0))
        teams.create_key(client, "support")
        client.delete(LOCKED)  # which earlier versions did not write
        assert teams.read_registry(client).locked
        teams.remove_team(client, "support")
        assert teams.read_registry(client).locked
