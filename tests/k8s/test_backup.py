"""k8s/teams.sh: a backup of the teams' Redis and its restore, against real servers with the manifests' configuration.

There is no cluster: `kubectl exec` runs its command here, with a folder as /data; `valkey-cli` is the Python client.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from cluster.ports import free_port
from cluster.records.team_records import Team
from cluster.records.team_tables import VERSION
from cluster.records.teams import add_team, create_key, read_registry
from cluster.redis_server import find_server
from tests.conftest import wait_for
from tests.k8s.manifests import K8S, Document, kustomize
from tests.k8s.test_redis import AT_ONCE, configuration

PASSWORD = "s3cret"
KUBECTL = """#!/bin/sh
for command; do :; done
exec sh -c "$(printf '%s' "$command" | sed "s#/data#$FOLDER#g; s#6380#$SPARE_PORT#g")"
"""
CLI = f"""#!{sys.executable}
import os, sys, redis
words, port = sys.argv[1:], int(os.environ["MAIN_PORT"])
while words[0].startswith("-"):
    option = words.pop(0)
    value = words.pop(0) if option in ("-p", "--cacert") else ""
    port = int(value) if option == "-p" else port
connection = redis.Connection(port=port, password=os.environ.get("REDISCLI_AUTH"), decode_responses=True)
try:
    connection.send_command(*words)
    print(connection.read_response())
except redis.ConnectionError as error:
    sys.exit(words[0] != "SHUTDOWN" and str(error))
"""


@pytest.fixture(scope="module")
def manifests() -> list[Document]:
    return kustomize(K8S / "overlays" / "production")


class Server:
    """The teams' Redis of a cluster. folder: its volume."""

    def __init__(self, manifests: list[Document], folder: Path) -> None:
        folder.mkdir()
        self.folder, self.port = folder, free_port()
        self.command = configuration(manifests, "dray-teams", folder, self.port)[0]

    @contextmanager
    def running(self) -> Iterator[Any]:
        environment = {"PASSWORD": PASSWORD, "PATH": "/usr/bin:/bin"}
        with (
            subprocess.Popen(["sh", "-c", self.command], env=environment, stdout=subprocess.DEVNULL) as process,
            redis.Redis(port=self.port, password=PASSWORD, retry=AT_ONCE) as client,
        ):
            try:
                wait_for(lambda: _answers(client))
                yield client
            finally:
                process.terminate()
                process.wait(30)

    def script(self, tools: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs k8s/teams.sh with this server's pod at the other end."""
        tools.mkdir(exist_ok=True)
        for name, text in (("kubectl", KUBECTL), ("valkey-cli", CLI)):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        if not (tools / "valkey-server").exists():
            (tools / "valkey-server").symlink_to(find_server())
        environment = {
            "PATH": f"{tools}:/usr/bin:/bin",
            "PASSWORD": PASSWORD,
            "FOLDER": str(self.folder),
            "MAIN_PORT": str(self.port),
            "SPARE_PORT": str(free_port()),
        }
        command = [str(K8S / "teams.sh"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def _answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def test_a_backup_is_restored_and_survives_a_restart(manifests: list[Document], tmp_path: Path) -> None:
    lost, ours = Server(manifests, tmp_path / "lost"), Server(manifests, tmp_path / "ours")
    backup = tmp_path / "teams.rdb"
    with lost.running() as client:
        add_team(client, Team("support", 1.0))
        key = create_key(client, "support").key
        client.set("dray:usage", "spent")
        done = lost.script(tmp_path / "tools", "backup", str(backup))
        assert done.returncode == 0, done.stderr
        version = int(client.get(VERSION) or 0)
    assert PASSWORD.encode() not in backup.read_bytes()
    with ours.running() as client:
        add_team(client, Team("mistaken", 1.0))
        before = int(client.get(VERSION) or 0)
        done = ours.script(tmp_path / "tools", "restore", str(backup))
        assert done.returncode == 0, done.stderr
        registry = read_registry(client)
        assert registry.teams.keys() == {"support"} and registry.keys.keys() == {key.id} and registry.locked
        assert registry.version not in (before, version), "routers load what has another version"
        assert client.info("replication")["role"] == "master"
        add_team(client, Team("later", 1.0))
        assert not (ours.folder / "restore").exists()
    # Pods are moved: what counts is on the volume.
    with ours.running() as client:
        assert read_registry(client).teams.keys() == {"support", "later"}
        assert client.get("dray:usage") == b"spent"


@pytest.mark.parametrize("content", [b"", b"REDIS0011 and then nothing that a server reads"])
def test_what_is_no_backup_changes_nothing(content: bytes, manifests: list[Document], tmp_path: Path) -> None:
    server, backup = Server(manifests, tmp_path / "volume"), tmp_path / "teams.rdb"
    backup.write_bytes(content)
    with server.running() as client:
        add_team(client, Team("support", 1.0))
        done = server.script(tmp_path / "tools", "restore", str(backup))
        assert done.returncode != 0 and "no backup" in done.stderr
        assert read_registry(client).teams.keys() == {"support"}
        assert client.info("replication")["role"] == "master"
        add_team(client, Team("writable", 1.0))
        assert not (server.folder / "restore").exists()


def test_arguments_are_explained(manifests: list[Document], tmp_path: Path) -> None:
    server = Server(manifests, tmp_path / "volume")
    for arguments in ([], ["backup"], ["copy", "teams.rdb"]):
        done = server.script(tmp_path / "tools", *arguments)
        assert done.returncode == 2 and "k8s/teams.sh restore teams.rdb" in done.stderr
