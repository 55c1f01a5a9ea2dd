"""A Redis that hangs is killed, so that the launcher starts it again; one that has nothing to do is not."""

import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.launch.hung_servers import PATIENCE_S, HungServers
from cluster.redis_server import OwnRedis
from tests.conftest import wait_for

PATIENT_S = 0.6


@pytest.fixture
def redis() -> Iterator[OwnRedis]:
    with tempfile.TemporaryDirectory(prefix="dray-h-") as folder:
        server = OwnRedis(Path(folder) / "redis", 16)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def process_of(redis: OwnRedis) -> psutil.Process:
    assert redis.pid is not None
    return psutil.Process(redis.pid)


def look(servers: HungServers, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        servers.kill()
        time.sleep(0.15)


def test_a_redis_that_hangs_is_killed_and_starts_again(redis: OwnRedis, caplog: pytest.LogCaptureFixture) -> None:
    process = process_of(redis)
    assert process.name() in PATIENCE_S
    servers = HungServers({process.name(): PATIENT_S})
    look(servers, 3 * PATIENT_S)
    assert not redis.revive(), "it has nothing to do, and lives"
    process.suspend()

    def revived() -> bool:
        servers.kill()
        return redis.revive()

    with caplog.at_level(logging.ERROR):
        wait_for(revived, 20)
    assert f"(process {process.pid}) hangs" in caplog.text
    assert process_of(redis).pid != process.pid
    look(servers, 2 * PATIENT_S)
    assert not redis.revive()


def test_a_suspended_launcher_kills_nothing(redis: OwnRedis) -> None:
    process = process_of(redis)
    servers = HungServers({process.name(): PATIENT_S})
    servers.kill()
    process.suspend()  # and so is the launcher, for longer than the patience
    time.sleep(2 * PATIENT_S)
    servers.kill()
    servers.kill()
    process.resume()
    look(servers, 3 * PATIENT_S)
    assert not redis.revive()


def test_other_programs_are_left_alone(redis: OwnRedis) -> None:
    process = process_of(redis)
    servers = HungServers({"raylet": PATIENT_S})
    servers.kill()
    process.suspend()
    look(servers, 3 * PATIENT_S)
    process.resume()
    assert not redis.revive()
