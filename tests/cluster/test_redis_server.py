"""Dray's own Redis: restarted after it has ended, also if the first attempt fails."""

import os
import signal
from pathlib import Path

import pytest
import redis

from cluster.redis_server import OwnRedis, RedisStartError
from tests.conftest import wait_for


def kill(server: OwnRedis) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    # Until all its threads have ended; its status says "zombie" as soon as the first one has.
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)


def test_a_revival_that_fails_is_tried_again_and_keeps_the_data(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    server = OwnRedis(folder, 16, tmp_path / "data", discard_on_stop=True)
    server.start()
    assert not server.revive(), "it still runs"
    with redis.Redis.from_url(server.url) as client:
        client.set("kept", "yes")
        wait_for(lambda: any(b"kept" in file.read_bytes() for file in (tmp_path / "data").rglob("*.aof")), 10)
    kill(server)
    folder.rename(tmp_path / "away")
    folder.touch()
    for _ in range(2):
        with pytest.raises(RedisStartError, match="is not a folder"):
            server.revive()
    folder.unlink()
    assert server.revive() and not server.revive()
    with redis.Redis.from_url(server.url) as client:
        assert client.get("kept") == b"yes"
    server.stop()
    assert not folder.exists() and not (tmp_path / "data").exists()
    assert not server.revive(), "a server that was stopped on purpose stays stopped"


def test_a_binary_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = OwnRedis(tmp_path / "s", 16)
    server.start()
    path = os.environ["PATH"]
    binary = tmp_path / "bin" / "valkey-server"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\nexit 1\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binary.parent}:{path}")
    kill(server)
    with pytest.raises(RedisStartError, match="it wrote no log"):  # rather than the log of the killed server
        server.revive()
    binary.write_text("not a program")
    with pytest.raises(RedisStartError, match="Exec format error"):
        server.revive()
    monkeypatch.setenv("PATH", path)
    assert server.revive()
    server.stop()
