"""`dray keys remove` and `dray keys disable`, with a real Redis."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.launch.state import Record, hold, write_record
from cluster.records import teams
from cluster.records.team_records import Team
from cluster.records.teams import Registry
from cluster.redis_client import connect
from tests.conftest import redis_server

Run = Callable[..., Result]


@pytest.fixture
def store() -> Iterator[str]:
    with redis_server(16) as server:
        yield server.url


@pytest.fixture
def run(store: str, tmp_path: Path) -> Iterator[Run]:
    folder = tmp_path / "s"

    def invoke(*arguments: str, answer: str = "", host: str = "127.0.0.1") -> Result:
        """host: the address that the running Dray listens on."""
        write_record(folder, Record(os.getpid(), "ready", settings={"host": host}))
        environment = {"DRAY_TEAMS__URL": store, "DRAY_STATE_DIR": str(folder), "DRAY_DATA_DIR": str(tmp_path / "d")}
        return CliRunner().invoke(app, ["keys", *arguments], input=answer, env=environment)

    with hold(folder):
        yield invoke


def stored(url: str) -> Registry:
    with connect(url) as client:
        return teams.read_registry(client)


def new_key(url: str, *, ended: bool) -> str:
    with connect(url) as client:
        if "support" not in teams.read_registry(client).teams:
            teams.add_team(client, Team("support", 0.0))
        return teams.create_key(client, "support", expires_in_s=-1 if ended else 0).key.id


def test_a_key_is_removed_once_it_has_ended(store: str, run: Run) -> None:
    valid, ended = new_key(store, ended=False), new_key(store, ended=True)
    refused = run("remove", valid)
    assert refused.exit_code == 1 and "revoke it first" in refused.output
    assert run("remove", ended).exit_code == 0
    assert set(stored(store).keys) == {valid}
    assert run("revoke", valid).exit_code == 0 and run("remove", valid).exit_code == 0
    assert stored(store).keys == {} and stored(store).locked


def test_keys_are_disabled_only_by_one_who_confirms(store: str, run: Run) -> None:
    new_key(store, ended=False)
    refused = run("disable", answer="n\n")
    assert refused.exit_code == 1 and "every program on this machine" in refused.output
    assert stored(store).locked and len(stored(store).keys) == 1
    assert run("disable", answer="y\n").exit_code == 0
    assert not stored(store).locked and stored(store).keys == {} and set(stored(store).teams) == {"support"}
    new_key(store, ended=False)
    done = run("disable", "--yes")
    assert done.exit_code == 0 and "deleted 1 key;" in done.output and not stored(store).locked


def test_keys_are_not_disabled_where_others_can_connect(store: str, run: Run) -> None:
    new_key(store, ended=False)
    for host in ("0.0.0.0", "::", "10.0.0.1", "dray.example.com"):
        refused = run("disable", "--yes", host=host)
        assert refused.exit_code == 1 and f"listens on {host}" in refused.output
    assert stored(store).locked and len(stored(store).keys) == 1


def test_keys_are_not_disabled_from_a_machine_where_dray_does_not_run(store: str, tmp_path: Path) -> None:
    """As from a pod, whose own settings say nothing of where the routers listen."""
    new_key(store, ended=False)
    environment = {"DRAY_TEAMS__URL": store, "DRAY_STATE_DIR": str(tmp_path / "s")}
    refused = CliRunner().invoke(app, ["keys", "disable", "--yes"], env=environment)
    assert refused.exit_code == 1 and "Dray is not running" in refused.output
    assert stored(store).locked and len(stored(store).keys) == 1
