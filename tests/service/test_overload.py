"""Ten times an engine's capacity for a minute: admitted requests are answered, the others are refused at once.

The engine is slowed down to the speed of a larger model: ten times the capacity of the bundled model is more than a
client, a router and HAProxy can handle together on one core.
"""

import asyncio
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import httpx
import pytest

from cluster.ports import free_port
from tests.conftest import MODEL, Dray
from tests.slowly import slowed

pytestmark = pytest.mark.slow

SLOTS, QUEUED, TOKENS, SHARE = 8, 16, 64, 0.2


@pytest.fixture(scope="module")
def small() -> Iterator[Dray]:
    """An engine of one core with few slots."""
    dray = Dray(Path(tempfile.mkdtemp(prefix="dray-t-")), free_port())
    started = dray.run(
        "up",
        "--detach",
        timeout=120,
        DRAY_MODEL__CORES_PER_REPLICA="1",
        DRAY_MODEL__MAX_NUM_SEQS=str(SLOTS),
        DRAY_LIMITS__MAX_QUEUED=str(QUEUED),
        # Small enough to be full before memory is measured: an engine allocates it as it is used.
        DRAY_MODEL__KV_CACHE_MB="24",
    )
    assert started.returncode == 0, started.stdout + started.stderr
    yield dray
    stopped = dray.run("down")
    shutil.rmtree(dray.folder, ignore_errors=True)
    assert stopped.returncode == 0, stopped.stderr


@dataclass
class Results:
    """Status codes, the seconds until each answer and each refusal, and the seconds in the refusals' Retry-After."""

    statuses: Counter[int] = field(default_factory=Counter)
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)


async def ask(client: httpx.AsyncClient, results: Results) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"What is 12 + 13? {secrets.token_hex(4)}"}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
    }
    start = time.perf_counter()
    response = await client.post("/chat/completions", json=body)
    seconds = time.perf_counter() - start
    results.statuses[response.status_code] += 1
    if response.status_code == 200:
        assert response.json()["usage"]["completion_tokens"] == TOKENS
        results.answered.append(seconds)
    else:
        assert response.json()["error"]["code"] == "overloaded"
        results.refused.append(seconds)
        results.waits.append(int(response.headers["retry-after"]))


async def closed_loop(client: httpx.AsyncClient, clients: int, seconds: float) -> Results:
    """Each client sends its next request when the last one is answered."""
    results, deadline = Results(), time.monotonic() + seconds

    async def one_client() -> None:
        while time.monotonic() < deadline:
            await ask(client, results)

    await asyncio.gather(*(one_client() for _ in range(clients)))
    return results


async def open_loop(client: httpx.AsyncClient, rate: float, seconds: float, results: Results) -> None:
    """Requests arrive at a constant rate, whether earlier ones are answered or not. rate: requests per second."""
    start = time.monotonic()
    tasks: set[asyncio.Task[None]] = set()
    sent = 0
    while (now := time.monotonic()) - start < seconds:
        while sent < (now - start) * rate:
            sent += 1
            tasks.add(asyncio.create_task(ask(client, results)))
        await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)


def memory_of(dray: Dray) -> int:
    """Resident bytes of routers and engines."""
    processes = [*dray.processes("ServeReplica"), *dray.processes("deployments.engine.core")]
    return sum(process.memory_info().rss for process in processes)


@pytest.mark.timeout(300)
def test_ten_times_the_capacity_for_a_minute(small: Dray) -> None:
    async def overload() -> None:
        [engine] = small.processes("deployments.engine.core")
        limits = httpx.Limits(max_connections=None)
        with slowed(engine.pid, SHARE):
            async with httpx.AsyncClient(base_url=small.url, timeout=120, limits=limits) as client:
                await closed_loop(client, 1, 5)
                calm = await closed_loop(client, 1, 5)
                full = await closed_loop(client, SLOTS, 8)
                capacity = full.statuses[200] / 8
                flood = Results()
                await open_loop(client, 10 * capacity, 30, flood)
                # By now a busy process has allocated the memory that it keeps.
                before = memory_of(small)
                await open_loop(client, 10 * capacity, 30, flood)
                grown = memory_of(small) - before
                flood_end = time.monotonic()
                after = Results()
                while not after.answered or after.answered[-1] > 1.5 * quantiles(calm.answered, n=20)[-1]:
                    await ask(client, after)
                    assert time.monotonic() - flood_end < 5, (after, median(calm.answered))

        assert set(flood.statuses) == {200, 503}
        # Refusals cost the engine nothing: it answers as many requests as it can.
        assert flood.statuses[200] > 0.7 * capacity * 60
        assert max(flood.answered) < 3 * (SLOTS + QUEUED) / capacity
        assert median(flood.refused) < 0.1
        assert quantiles(flood.refused, n=20)[-1] < 0.25, quantiles(flood.refused, n=20)
        # Clients are told to wait about as long as the queue takes.
        queue_s = QUEUED / capacity
        assert queue_s / 3 < median(flood.waits) < max(3 * queue_s, 2), (queue_s, Counter(flood.waits))
        assert grown < 40 * 2**20, grown

    asyncio.run(overload())
