"""Sentinel with real processes: the primary dies or hangs, with a sentinel beside it, and all find the next one."""

import asyncio
import signal
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import redis

from cluster.ports import free_port
from cluster.records import teams
from cluster.records.team_records import Quota, Team
from cluster.redis_client import connect
from cluster.redis_server import find_server
from cluster.settings import CacheSettings, TeamSettings
from deployments.common.redis import RedisUnavailable
from deployments.tenancy.auth import Authenticator
from deployments.tenancy.quotas import Quotas
from tests.cluster.test_redis_client import answers, server
from tests.conftest import wait_for
from tests.deployments.cache.test_answers import store_at

T = TypeVar("T")

TEAM = Team("support", 0.0, quota=Quota(requests_per_minute=100))


@dataclass(frozen=True)
class Group:
    """A primary, its replica and three sentinels, which agree on a failover by two. url: the first sentinel is the one
    beside the primary."""

    url: str
    primary: subprocess.Popen[bytes]
    primary_port: int
    sentinels: tuple[subprocess.Popen[bytes], ...]
    sentinel_port: int

    def primary_now(self) -> int:
        """The port of the primary, by the last sentinel."""
        with redis.Redis(port=self.sentinel_port) as sentinel:
            return int(sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "ours")[1])


@contextmanager
def sentinel(folder: Path, primary: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    port = free_port()
    config = folder / f"sentinel-{port}.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor ours 127.0.0.1 {primary} 2\n"
        "sentinel down-after-milliseconds ours 1000\nsentinel failover-timeout ours 4000\n"
    )
    process = subprocess.Popen([find_server(), str(config), "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: answers(port))
        yield process, port
    finally:
        process.kill()
        process.wait()


def known(kind: str, port: int) -> int:
    """How many replicas, or other sentinels, a sentinel knows."""
    with redis.Redis(port=port) as client:
        return len(client.execute_command("SENTINEL", kind, "ours"))


@contextmanager
def group() -> Iterator[Group]:
    with tempfile.TemporaryDirectory(prefix="dray-f-") as name, ExitStack() as stack:
        folder = Path(name)
        primary, port = stack.enter_context(server(folder=folder))
        stack.enter_context(server("--replicaof", "127.0.0.1", str(port), folder=folder))
        watchers = [stack.enter_context(sentinel(folder, port)) for _ in range(3)]
        ports = [port for _, port in watchers]
        # They learn of replicas and of each other every ten and two seconds.
        wait_for(lambda: all(known("REPLICAS", port) == 1 and known("SENTINELS", port) == 2 for port in ports), 60)
        url = f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in ports)}/ours"
        yield Group(url, primary, port, tuple(process for process, _ in watchers), ports[-1])


async def works(call: Callable[[], Awaitable[T]]) -> T:
    """The result of the call, as soon as Redis can be reached."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return await call()
        except RedisUnavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


def retried(call: Callable[[], T]) -> T:
    """The same for a command."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return call()
        except redis.RedisError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_routers_and_commands_find_the_next_primary(fault: signal.Signals) -> None:
    """With the timeouts of the settings, which end before a hanging sentinel is given up."""

    async def work(running: Group) -> None:
        teams_store = store_at(running.url, timeout_s=TeamSettings().timeout_s)
        cache_store = store_at(running.url, timeout_s=CacheSettings().timeout_s)
        authenticator, quotas = Authenticator(teams_store, "0.0.0.0", "n"), Quotas(teams_store, 1)
        with connect(running.url) as command:
            teams.add_team(command, TEAM)
            first = teams.create_key(command, TEAM.name).secret
            await works(authenticator.refresh)
            await works(lambda: cache_store.execute("SET", "before", "1"))
            with redis.Redis(port=running.primary_port) as primary:
                assert wait_for(lambda: primary.execute_command("WAIT", 1, 500) == 1)
            for process in (running.primary, running.sentinels[0]):
                process.send_signal(fault)
            # Requests go on meanwhile: keys are known, and quotas counted here.
            assert authenticator.authenticate({"authorization": f"Bearer {first}"}).name == TEAM.name
            await (await quotas.admit(TEAM)).release()
            await works(lambda: cache_store.execute("SET", "after", "1"))
            assert await cache_store.get("before") == b"1", "the replica held it"
            assert running.primary_now() != running.primary_port
            second = await asyncio.to_thread(lambda: retried(lambda: teams.create_key(command, TEAM.name)).secret)
            await works(authenticator.refresh)
            assert authenticator.authenticate({"authorization": f"Bearer {second}"}).name == TEAM.name
            if fault == signal.SIGSTOP:
                for process in (running.primary, running.sentinels[0]):
                    process.send_signal(signal.SIGCONT)
                # The old one becomes a replica, which takes no writes.
                with redis.Redis(port=running.primary_port) as old:
                    wait_for(lambda: old.role()[0] == b"slave", 60)
                await works(lambda: cache_store.execute("SET", "later", "1"))
                await works(lambda: teams_store.execute("SET", "later", "1"))
        for store in (teams_store, cache_store):
            await store.close()

    with group() as running:
        asyncio.run(work(running))
