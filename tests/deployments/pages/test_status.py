"""The status page: who sees its data, by the setting `status_page`, and what the data are."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.metrics_core import Metric

from cluster.records.team_records import Team
from cluster.records.teams import add_team, create_key
from cluster.redis_client import connect
from cluster.redis_server import OwnRedis
from deployments.pages import status
from deployments.tenancy.identity import Identity
from deployments.tenancy.sessions import Sessions, cookie_name
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import Engines, RunningRouter, running_router

DATA = ("/status/machine", "/status/load")
METHODS = ("GET", "HEAD")


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


def asked(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    server: OwnRedis,
    work: Callable[[httpx.AsyncClient, RunningRouter], Awaitable[None]],
    **settings: Any,
) -> None:
    """Runs the test with a client of a router."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))

    async def run() -> None:
        async with (
            running_router(monkeypatch, server.url, engines=Engines(), **settings) as router,
            httpx.AsyncClient(base_url=router.url, timeout=30) as client,
        ):
            await work(client, router)

    asyncio.run(run())


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def statuses(client: httpx.AsyncClient, router: RunningRouter, headers: Mapping[str, str]) -> set[int]:
    """The statuses of all data, by GET and by HEAD, which the other pages use to find out whether to link."""
    router.router._status_page._load._interval_s = 0
    return {(await client.request(method, path, headers=headers)).status_code for path in DATA for method in METHODS}


@pytest.mark.parametrize(
    ("readers", "stranger", "team", "admin"),
    [("everyone", 200, 200, 200), ("keys", 401, 200, 200), ("admins", 401, 403, 200)],
)
def test_the_setting_says_who_sees_the_data(
    server: OwnRedis,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    readers: str,
    stranger: int,
    team: int,
    admin: int,
) -> None:
    with connect(server.url) as redis:
        add_team(redis, Team("support", 1.0))
        keys = {name: create_key(redis, name).secret for name in ("support", "")}

    async def work(client: httpx.AsyncClient, router: RunningRouter) -> None:
        assert await statuses(client, router, {}) == {stranger}
        assert await statuses(client, router, bearer("dray-wrong")) == {stranger}
        assert await statuses(client, router, {"cookie": f"dray-console={keys['']}"}) == {stranger}, (
            "a key is no session"
        )
        assert await statuses(client, router, bearer(keys["support"])) == {team}
        assert await statuses(client, router, bearer(keys[""])) == {admin}
        assert await statuses(client, router, {"x-api-key": keys[""]}) == {admin}
        page = await client.get("/status")
        assert page.status_code == 200 and MODEL not in page.text, "the page by itself says nothing of this Dray"
        assert f'data-readers="{readers}"' in page.text
        refused = await client.get("/status/load", headers=bearer(keys["support"]))
        assert team == 200 or refused.json()["error"]["code"] == "admin_key_needed"

    asked(monkeypatch, tmp_path, server, work, status_page=readers)


@pytest.mark.parametrize(("readers", "status"), [("everyone", 200), ("keys", 200), ("admins", 403)])
def test_without_keys_whoever_may_use_the_api_is_a_reader_but_no_admin(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, readers: str, status: int
) -> None:
    async def work(client: httpx.AsyncClient, router: RunningRouter) -> None:
        assert await statuses(client, router, {}) == {status}

    asked(monkeypatch, tmp_path, server, work, status_page=readers)


def test_who_signed_on_to_the_console_sees_it_and_no_other_sites_page_does(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(client: httpx.AsyncClient, router: RunningRouter) -> None:
        sessions: Sessions = router.router._sign_on.sessions
        made = {admin: await sessions.create(Identity("carol", "", admin, 2e10)) for admin in (True, False)}
        for secure in (True, False):
            name = cookie_name(secure=secure)
            cookie = {"cookie": f"{name}={made[True]}"}
            assert await statuses(client, router, cookie) == {200}
            assert await statuses(client, router, cookie | {"sec-fetch-site": "same-origin"}) == {200}
            for foreign in ("cross-site", "same-site"):
                assert await statuses(client, router, cookie | {"sec-fetch-site": foreign}) == {401}
            assert await statuses(client, router, {"cookie": f"{name}={made[False]}"}) == {403}
            assert await statuses(client, router, {"cookie": f"{name}={made[True][:-1]}"}) == {401}
        refused = cookie | bearer("dray-wrong")
        assert await statuses(client, router, refused) == {401}, "the key that was entered is what counts"
        await sessions.end(made[True])
        assert await statuses(client, router, cookie) == {401}

    # Nobody answers there: a session needs no provider.
    nobody = "http://127.0.0.1:9"
    sign_on = {"issuer": nobody, "audiences": ["dray"], "client_id": "dray", "public_url": nobody, "admins": ["admins"]}
    asked(monkeypatch, tmp_path, server, work, status_page="admins", sign_on=sign_on)


def test_many_readers_of_the_load_get_one_report(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[int] = []

    def report() -> list[Metric]:
        made.append(1)
        return []

    monkeypatch.setattr(status, "node_metrics", report)

    async def work(client: httpx.AsyncClient, router: RunningRouter) -> None:
        answers = await asyncio.gather(*(client.get("/status/load") for _ in range(20)))
        assert [answer.json()["answers"] for answer in answers] == [0] * 20
        assert len(made) <= 2, "one that was asked for before the others, and theirs"

    asked(monkeypatch, tmp_path, server, work)


PROCESS = """
from deployments.common.messages import EngineLoad, Ready
from deployments.common.types import Usage
from deployments.observability.metrics import EngineMetrics, RouterMetrics, node_metrics
from deployments.pages.node_load import node_load
import msgspec
router = RouterMetrics()
for result in ("miss", "hit", "curated", "join", "bypass"):
    router.count_answer("m", "secret-team", Usage(100, 20, 5, 30), result, 2.0)
router.waiting.labels("m").set(4)
for number, replica in ((8, "later"), (2, "first")):
    engine = EngineMetrics("m", replica)
    engine.started([number, number + 1], 1, Ready(1.0, 1.0, 100))
    engine.started([number, number + 1], 2, Ready(1.0, 1.0, 100))
    engine.restarts.inc()
    engine.report(EngineLoad(kv_used=0.5, decoded_tokens=70), 3)
print(msgspec.json.encode(node_load(node_metrics())).decode())
"""


def test_the_load_is_that_of_the_metrics_without_names_of_teams(tmp_path: Path) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, env=environment, check=True)
    load = json.loads(done.stdout)
    replica = {"model": "m", "running": 3, "tokens": 70, "kv_used": 0.5, "restarts": 1}
    assert load == {
        "answers": 5,
        "cached": 3,
        "waiting": 4,
        "replicas": [{"replica": "first", "cpus": [2, 3]} | replica, {"replica": "later", "cpus": [8, 9]} | replica],
    }
    assert b"secret-team" not in done.stdout
