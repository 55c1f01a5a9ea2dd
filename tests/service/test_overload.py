"""Ten times what an engine can do, for a minute: what is taken is answered, what is not is refused at once.

The engine is held back to the pace of a larger model: ten times the bundled one's is more than a client, a router and
HAProxy can do together on one core.
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

from cluster.launch.preflight import free_port
from tests.conftest import MODEL, Dray
from tests.slowly import slowed

pytestmark = pytest.mark.slow

PLACES, WAITING, TOKENS, SHARE = 8, 16, 64, 0.2


@pytest.fixture(scope="module")
def small() -> Iterator[Dray]:
    """An engine of one core, with few places."""
    dray = Dray(Path(tempfile.mkdtemp(prefix="dray-t-")), free_port())
    started = dray.run(
        "up",
        "--detach",
        timeout=120,
        DRAY_MODEL__CORES_PER_REPLICA="1",
        DRAY_MODEL__MAX_NUM_SEQS=str(PLACES),
        DRAY_LIMITS__MAX_QUEUED=str(WAITING),
        # So small that it is filled before memory is looked at: an engine takes it as it comes to use it.
        DRAY_MODEL__KV_CACHE_MB="24",
    )
    assert started.returncode == 0, started.stdout + started.stderr
    yield dray
    stopped = dray.run("down")
    shutil.rmtree(dray.folder, ignore_errors=True)
    assert stopped.returncode == 0, stopped.stderr


@dataclass
class Seen:
    """Statuses, and seconds of the answers and of the refusals; what refusals said to wait."""

    statuses: Counter[int] = field(default_factory=Counter)
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)


async def ask(client: httpx.AsyncClient, seen: Seen) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"What is 12 + 13? {secrets.token_hex(4)}"}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
    }
    began = time.perf_counter()
    given = await client.post("/chat/completions", json=body)
    took = time.perf_counter() - began
    seen.statuses[given.status_code] += 1
    if given.status_code == 200:
        assert given.json()["usage"]["completion_tokens"] == TOKENS
        seen.answered.append(took)
    else:
        assert given.json()["error"]["code"] == "overloaded"
        seen.refused.append(took)
        seen.waits.append(int(given.headers["retry-after"]))


async def closed_loop(client: httpx.AsyncClient, lanes: int, seconds: float) -> Seen:
    seen, deadline = Seen(), time.monotonic() + seconds

    async def lane() -> None:
        while time.monotonic() < deadline:
            await ask(client, seen)

    await asyncio.gather(*(lane() for _ in range(lanes)))
    return seen


async def open_loop(client: httpx.AsyncClient, rate: float, seconds: float, seen: Seen) -> None:
    began = time.monotonic()
    tasks: set[asyncio.Task[None]] = set()
    number = 0
    while (now := time.monotonic()) - began < seconds:
        while number < (now - began) * rate:
            number += 1
            tasks.add(asyncio.create_task(ask(client, seen)))
        await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)


def memory_of(dray: Dray) -> int:
    """Bytes that routers and engines hold."""
    every = [*dray.processes("ServeReplica"), *dray.processes("deployments.engine.core")]
    return sum(one.memory_info().rss for one in every)


@pytest.mark.timeout(300)
def test_ten_times_the_capacity_for_a_minute(small: Dray) -> None:
    async def go() -> None:
        [engine] = small.processes("deployments.engine.core")
        limits = httpx.Limits(max_connections=None)
        with slowed(engine.pid, SHARE):
            async with httpx.AsyncClient(base_url=small.url, timeout=120, limits=limits) as client:
                await closed_loop(client, 1, 5)
                calm = await closed_loop(client, 1, 5)
                full = await closed_loop(client, PLACES, 8)
                capacity = full.statuses[200] / 8
                flood = Seen()
                await open_loop(client, 10 * capacity, 30, flood)
                # What a busy process takes and keeps, it has by now.
                before = memory_of(small)
                await open_loop(client, 10 * capacity, 30, flood)
                grown = memory_of(small) - before
                ended = time.monotonic()
                after = Seen()
                while not after.answered or after.answered[-1] > 1.5 * quantiles(calm.answered, n=20)[-1]:
                    await ask(client, after)
                    assert time.monotonic() - ended < 5, (after, median(calm.answered))

        assert set(flood.statuses) == {200, 503}
        # What is taken has the engine to itself: it answers what it can.
        assert flood.statuses[200] > 0.7 * capacity * 60
        assert max(flood.answered) < 3 * (PLACES + WAITING) / capacity
        assert median(flood.refused) < 0.1
        assert quantiles(flood.refused, n=20)[-1] < 0.25, quantiles(flood.refused, n=20)
        # As long as those that wait take, by the pace of the engine.
        true = WAITING / capacity
        assert true / 3 < median(flood.waits) < max(3 * true, 2), (true, Counter(flood.waits))
        assert grown < 40 * 2**20, grown

    asyncio.run(go())
