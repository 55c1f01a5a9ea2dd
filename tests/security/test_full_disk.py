"""A full disk: a file system of its own with little room, so that only root can run these."""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.records import teams
from cluster.records.team_records import ADMIN, Team
from cluster.redis_client import connect
from cluster.redis_server import OwnRedis
from deployments.api import info
from tests.conftest import redis_server, wait_for
from tests.deployments.routers import running_router

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")


@pytest.fixture
def disk() -> Iterator[Path]:
    """4 MB of disk."""
    with tempfile.TemporaryDirectory(prefix="dray-d-") as name:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "dray", name], check=False)
        if mounted.returncode:
            pytest.skip("this container may not mount a file system")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


def fill(disk: Path) -> None:
    """Leaves no byte of it free."""
    with (disk / "ballast").open("wb", buffering=0) as ballast:
        for size in (65_536, 4096, 1):
            try:
                while True:
                    ballast.write(b"x" * size)
            except OSError:
                continue


_MANY_METRICS = """
import sys
from tests.security.test_full_disk import fill
from pathlib import Path
from deployments.observability.metrics import RouterMetrics, exposition
if sys.argv[2] == "before":
    fill(Path(sys.argv[1]))
metrics = RouterMetrics()
metrics.requests["/a", "200", "", ""].inc()
fill(Path(sys.argv[1]))
for number in range(2000):
    metrics.requests[f"/{number}", "200", "", ""].inc()
assert metrics.requests["/1999", "200", "", ""]._value.get() == 1
exposition()
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_router_survives_it(disk: Path, when: str) -> None:
    (disk / "metrics").mkdir()
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(disk / "metrics")}
    command = [sys.executable, "-c", _MANY_METRICS, str(disk), when]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr


def test_readiness_warns_of_it(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "models_without_replicas", lambda engines: [])

    async def ready() -> list[dict[str, Any]]:
        with redis_server(16) as server:
            async with (
                running_router(monkeypatch, server.url) as router,
                httpx.AsyncClient(base_url=router.url, timeout=30) as http,
            ):
                answers = []
                for folder in (disk, tmp_path):
                    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
                    answers.append(await http.get("/health/ready"))
        assert [answer.status_code for answer in answers] == [200, 200], "other routers' disks may be as full"
        return [answer.json() for answer in answers]

    full, roomy = asyncio.run(ready())
    [warning] = full["warnings"]
    assert full["status"] == "ok" and f"{disk} has only" in warning
    assert roomy == {"status": "ok"}


def test_a_key_is_revoked_at_once_and_later_on_disk_too(disk: Path, tmp_path: Path) -> None:
    server = OwnRedis(tmp_path / "s", 64, disk / "teams")
    server.start()
    try:
        with connect(server.url) as client:
            teams.add_team(client, Team("a", created=0))
            first, second = (teams.create_key(client, "a").key.id for _ in range(2))
            assert teams.revoke_key(client, first).kept
            third = teams.create_key(client, "a").key.id
            fill(disk)
            wait_for(lambda: not teams.revoke_key(client, second).kept)
            assert not teams.revoke_key(client, first).kept, "nothing is kept from now on"
            assert teams.read_key(client, second).ends
            environment = {"DRAY_TEAMS__URL": server.url, "DRAY_DATA_DIR": str(disk), "DRAY_STATE_DIR": str(tmp_path)}
            warned = CliRunner().invoke(app, ["keys", "revoke", third], env=environment)
            assert warned.exit_code == 0 and f"revoked {third}" in warned.stdout, warned.output
            assert "this is not kept: after a restart the key is valid again" in warned.stderr
            assert teams.read_key(client, third).ends
            (disk / "ballast").unlink()
            wait_for(server.resume_persistence)
            wait_for(lambda: client.info("persistence")["aof_last_bgrewrite_status"] == "ok")
            assert teams.revoke_key(client, first).kept
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        wait_for(server.revive)
        with connect(server.url) as client:
            assert teams.read_key(client, second).ends
    finally:
        server.stop()


def test_the_admin_api_says_what_is_not_kept(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = OwnRedis(tmp_path / "s", 64, disk / "teams")
    server.start()
    try:
        with connect(server.url) as client:
            admin = teams.create_key(client, ADMIN)
            first, second = (teams.create_key(client, ADMIN).key.id for _ in range(2))
        asyncio.run(_ask_the_admin_api(server.url, admin.secret, first, second, disk, monkeypatch))
    finally:
        server.stop()


async def _ask_the_admin_api(
    url: str, secret: str, first: str, second: str, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"Authorization": f"Bearer {secret}"}
    async with (
        running_router(monkeypatch, url) as router,
        httpx.AsyncClient(base_url=router.url, headers=headers, timeout=30) as http,
    ):
        assert (await http.delete(f"/admin/keys/{first}")).json()["kept"]
        fill(disk)
        deadline = time.monotonic() + 30
        while (refused := await http.post("/admin/teams", json={"name": secrets.token_hex(4)})).status_code == 201:
            assert time.monotonic() < deadline
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "disk_full")
        revoked = (await http.delete(f"/admin/keys/{second}")).json()
        assert revoked["ends"] and not revoked["kept"]
