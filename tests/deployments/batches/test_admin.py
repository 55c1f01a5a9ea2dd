"""What an admin key sees of all teams' batches, by the client of `dray batch`; with a real router and a real Redis."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.audit import AUDIT_FOLDER
from cluster.batch_client import BatchClient
from cluster.client import ServerError
from cluster.records.team_records import ADMIN, Team
from cluster.records.teams import add_team, create_key
from cluster.redis_client import connect
from cluster.redis_server import OwnRedis
from tests.conftest import redis_server
from tests.deployments.batches.batch_files import CHAT, batch_router, jsonl, line
from tests.deployments.routers import Engines
from tests.deployments.waiting import until


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(32) as own:
        yield own


def test_an_admin_sees_and_cancels_every_teams_batches_but_reads_no_file(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with connect(server.url) as store:
        for name in ("ann", "ben"):
            add_team(store, Team(name, 0.0))
        keys = {name: create_key(store, name).secret for name in ("ann", "ben", ADMIN)}
    file = tmp_path / "in.jsonl"
    file.write_bytes(jsonl(line("a"), line("b")))

    def work(url: str) -> None:
        clients = {name: BatchClient(f"{url}/v1", key) for name, key in keys.items()}
        admin, made = clients[ADMIN], {}
        for name in ("ann", "ben"):
            made[name] = clients[name].submit(file, CHAT, "8h")
            assert [batch["id"] for batch in clients[name].batches()] == [made[name]["id"]]
        assert {(batch["owner"], batch["id"]) for batch in admin.batches()} == {
            (f"team.{name}", batch["id"]) for name, batch in made.items()
        }
        assert admin.show(made["ben"]["id"])["owner"] == "team.ben"
        with pytest.raises(ServerError, match="No batch found"):
            clients["ann"].show(made["ben"]["id"])
        with pytest.raises(ServerError, match="admin key"):
            admin.submit(file, CHAT, "8h")
        with pytest.raises(ServerError, match="admin key"):
            [*admin.content(made["ben"]["input_file_id"])]
        assert admin.cancel(made["ben"]["id"])["status"] in ("cancelling", "cancelled")
        assert b"".join(clients["ben"].content(made["ben"]["input_file_id"])) == file.read_bytes()
        for client in clients.values():
            client.__exit__(None, None, None)

    async def run() -> None:
        engines = Engines(blocked=asyncio.Event())
        async with batch_router(server, monkeypatch, tmp_path, engines=engines) as (router, _):
            await asyncio.to_thread(work, router.url)
            logged = tmp_path / AUDIT_FOLDER / "audit.jsonl"
            await until(logged.exists)
            actions = [json.loads(text)["action"] for text in logged.read_text().splitlines()]
            assert actions == ["batch.cancel"]

    asyncio.run(run())


def test_a_server_that_does_not_answer_is_an_error_in_one_line() -> None:
    with BatchClient("http://127.0.0.1:1/v1", "") as client, pytest.raises(ServerError, match="does not answer"):
        client.batches()
