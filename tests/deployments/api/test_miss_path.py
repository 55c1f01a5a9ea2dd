"""The cost of a request on its way to an engine, through a real router with a real Redis."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import redis

from cluster.redis_server import OwnRedis
from deployments.api import access, parser
from deployments.common.messages import ReplicaStats
from deployments.routing.registry import registry
from deployments.tenancy.auth import Authenticator
from tests.conftest import redis_server
from tests.deployments.routers import Engines, RunningRouter, chat, running_router

FENCE = "engine-asked"
REPLY_DELAY_S = 0.3
"""Between a command of the router and Redis' reply, in the test that counts trips."""


@pytest.fixture(scope="module")
def answers() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


@pytest.fixture(scope="module")
def teams() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


class Monitor:
    """Records the commands that clients send to a Redis, but not those that Lua scripts run."""

    def __init__(self, url: str) -> None:
        self.commands: list[str] = []
        self.times: list[float] = []
        """When the server received each, in seconds."""
        self._url = url
        self._client = redis.Redis.from_url(url)
        self._thread = Thread(target=self._listen, daemon=True)
        self._started = False

    def __enter__(self) -> "Monitor":
        self._thread.start()
        while not self._started:
            self._client.echo("begin")
        return self

    def __exit__(self, *error: object) -> None:
        self._client.echo("end")
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._client.close()

    def fence(self) -> None:
        """Marks this moment among the commands."""
        self._client.echo(FENCE)

    def before_fence(self) -> list[str]:
        """The commands before the fence."""
        return self.commands[: self.commands.index(f"ECHO {FENCE}")]

    def trips_before_fence(self) -> int:
        """The number of round trips: commands that did not wait for each other's reply share a trip."""
        times = self.times[: len(self.before_fence())]
        return len(times[:1]) + sum(later - earlier > REPLY_DELAY_S / 2 for earlier, later in pairwise(times))

    def _listen(self) -> None:
        with redis.Redis.from_url(self._url) as client, client.monitor() as monitor:
            for entry in monitor.listen():
                self._started = True
                command: str = entry["command"]
                if command == "ECHO end":
                    return
                # What a router does beside its requests and after them: none waits for that.
                beside = "dray:inbox:" in command or command.startswith(("SET dray:router:", "SET dray:given:"))
                if entry["client_type"] != "lua" and not beside and not re.match("ECHO begin|CLIENT|HELLO", command):
                    self.commands.append(command)
                    self.times.append(entry["time"])


@asynccontextmanager
async def slow(url: str, folder: Path) -> AsyncIterator[str]:
    """The URL of a proxy of this Redis that delays the replies."""
    tasks: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
        while data := await reader.read(65_536):
            await asyncio.sleep(delay_s)
            writer.write(data)
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_unix_connection(url.removeprefix("unix://"))
        for copying in (copy(reader, redis_writer, 0), copy(redis_reader, writer, REPLY_DELAY_S)):
            tasks.add(asyncio.create_task(copying))

    async with await asyncio.start_unix_server(connected, folder / "slow.sock"):
        yield f"unix://{folder}/slow.sock"
    await asyncio.wait(tasks)


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[object]:
    """Returns a list that grows with each call of this function; the function still works."""
    calls: list[object] = []
    original = getattr(owner, name)

    def recorded(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, recorded)
    return calls


def client_of(router: RunningRouter) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=router.url, headers={"Content-Type": "application/json"}, timeout=20)


@pytest.mark.parametrize("stream", [False, True])
def test_a_miss_costs_one_authentication_one_parse_and_two_trips_to_redis(
    answers: OwnRedis, teams: OwnRedis, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    authentications = count_calls(monkeypatch, Authenticator, "authenticate")
    reads = count_calls(monkeypatch, access, "read_body")
    parses = count_calls(monkeypatch, parser, "read_chat")

    async def work() -> None:
        engines = Engines()
        async with running_router(monkeypatch, answers.url, teams.url, engines) as router, client_of(router) as client:
            # This request opens the connections and loads the scripts.
            await client.post("/v1/chat/completions", content=chat(f"first {stream}"))
            for calls in (authentications, reads, parses):
                calls.clear()
            with Monitor(answers.url) as monitor:
                engines.on_request = monitor.fence
                response = await client.post("/v1/chat/completions", content=chat(f"hi {stream}", stream=stream))
                assert response.headers["x-dray-cache"] == "miss"
            commands = monitor.before_fence()
            assert [command.split()[0] for command in commands] == ["GET", "EVALSHA"], commands
            assert (len(authentications), len(reads), len(parses)) == (1, 1, 1)

            with Monitor(answers.url) as monitor:
                response = await client.post("/v1/chat/completions", content=chat(f"hi {stream}", stream=stream))
                assert response.headers["x-dray-cache"] == "hit"
            assert [command.split()[0] for command in monitor.commands] == ["GET"], monitor.commands
            assert (len(authentications), len(reads), len(parses)) == (2, 2, 2)
            assert router.counted() == {("/v1/chat/completions", "200"): 3}

    asyncio.run(work())


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_miss_takes_two_trips_to_redis_however_many_replicas_there_are(
    answers: OwnRedis, teams: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, replicas: int
) -> None:
    """With several replicas, the router also looks up which of them caches the prompt, while it acquires the flight."""
    engines, replica_set = Engines(), registry().replicas_of("engines")
    replica_set.update({f"replica-{number}": ReplicaStats() for number in range(replicas)})
    long = "What is 1 + 1? " * 20  # more than one block of the prefix cache

    async def work() -> None:
        async with (
            slow(answers.url, tmp_path) as url,
            running_router(monkeypatch, url, teams.url, engines) as router,
            client_of(router) as client,
        ):
            # These requests open the connections and load the scripts.
            await asyncio.gather(
                *(client.post("/v1/chat/completions", content=chat(f"{replicas} {n} {long}")) for n in range(3))
            )
            with Monitor(answers.url) as monitor:
                engines.on_request = monitor.fence
                response = await client.post("/v1/chat/completions", content=chat(f"{replicas} {long}"))
                assert response.headers["x-dray-cache"] == "miss"
            assert len(monitor.before_fence()) == (3 if replicas > 1 else 2), monitor.before_fence()
            assert monitor.trips_before_fence() == 2, list(zip(monitor.times, monitor.commands, strict=True))

    try:
        asyncio.run(work())
    finally:
        replica_set.update({})


def test_several_prompts_are_parsed_once_and_read_nothing_from_redis(
    answers: OwnRedis, teams: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    authentications = count_calls(monkeypatch, Authenticator, "authenticate")
    parses = count_calls(monkeypatch, parser, "read_completion")

    async def work() -> None:
        async with running_router(monkeypatch, answers.url, teams.url) as router, client_of(router) as client:
            with Monitor(answers.url) as monitor:
                body = {"model": "dray-demo", "prompt": ["a", "b"], "max_tokens": 5}
                response = await client.post("/v1/completions", json=body)
            assert len(response.json()["choices"]) == 2
            assert not [command for command in monitor.commands if command.startswith(("GET", "EVAL"))]
            assert (len(authentications), len(parses)) == (1, 1)
            assert router.counted() == {("/v1/completions", "200"): 1}

    asyncio.run(work())


def test_a_request_keeps_its_id_on_a_miss_and_on_a_hit(
    answers: OwnRedis, teams: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with running_router(monkeypatch, answers.url, teams.url) as router, client_of(router) as client:
            for headers in ({"x-request-id": "own-id"}, {}, {"x-request-id": ""}):
                ids = set()
                for expected in ("miss", "hit"):
                    content = chat(f"{headers} asks")
                    response = await client.post("/v1/chat/completions", content=content, headers=headers)
                    assert response.headers["x-dray-cache"] == expected
                    [identity] = response.headers.get_list("x-request-id")
                    ids.add(identity)
                assert ids == {"own-id"} if headers.get("x-request-id") else len(ids) == 2 and "" not in ids

    asyncio.run(work())


def test_without_a_cache_a_request_is_also_parsed_once_and_counted_once(
    answers: OwnRedis, teams: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    parses = count_calls(monkeypatch, parser, "read_chat")

    async def work() -> None:
        async with (
            running_router(monkeypatch, answers.url, teams.url, cache={"enabled": False}) as router,
            client_of(router) as client,
        ):
            response = await client.post("/v1/chat/completions", content=chat("hi"))
            assert response.headers["x-dray-cache"] == "bypass"
            assert len(parses) == 1
            assert router.counted() == {("/v1/chat/completions", "200"): 1}

    asyncio.run(work())
