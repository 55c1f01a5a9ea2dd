"""Thousands of requests of every kind through one Dray: memory stops growing once it is warm.

OpenVINO keeps memory for every number of tokens that a step has had, with the bundled model 510 MiB for the first 512
numbers, and none for a number that comes again. Which numbers come depends on what else the machine does. So steps are
kept small here: then all of them come early.

DRAY_TEST_REQUESTS: how many; fewer than the default do not warm an engine up. 6,000 took seven minutes.
"""

import asyncio
import json
import os
import random
import statistics
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import MODEL, Dray, started_dray

REQUESTS = int(os.environ.get("DRAY_TEST_REQUESTS", "20000"))
CLIENTS = 16
SAMPLES = 50
"""Of the memory, evenly over the requests."""
GROWTH, GROWTH_BYTES = 0.03, 6 * 2**20
"""The last fifth may need so much more than the third: memory comes in arenas of some megabytes."""
SCHEMA = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
UNCACHED = {"Cache-Control": "no-cache, no-store"}


class Clients:
    """Requests of every kind, each drawn by its number."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.done: Counter[str] = Counter()
        self._kinds: list[tuple[str, Callable[[int], Awaitable[None]]]] = [
            ("whole", self._whole),
            ("streamed", self._streamed),
            ("sampled", self._sampled),
            ("two choices", self._two_choices),
            ("cancelled", self._cancelled),
            ("schema", self._schema),
            ("stored", self._stored),
            ("long prompt", self._long_prompt),
        ]

    async def ask(self, number: int) -> None:
        name, kind = self._kinds[number % len(self._kinds)]
        await kind(number)
        self.done[name] += 1

    def _body(self, number: int, **more: Any) -> dict[str, Any]:
        chance = random.Random(number)
        question = f"What is {chance.randrange(10, 1000)} + {chance.randrange(10, 1000)}?"
        return {"model": MODEL, "messages": [{"role": "user", "content": question}], "max_tokens": 32, **more}

    async def _post(self, body: dict[str, Any], **headers: str) -> dict[str, Any]:
        answer = await self._http.post("/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        decoded: dict[str, Any] = answer.json()
        return decoded

    async def _whole(self, number: int) -> None:
        answer = await self._post(self._body(number, logprobs=True, top_logprobs=2), **UNCACHED)
        assert answer["usage"]["completion_tokens"] > 0

    async def _streamed(self, number: int) -> None:
        body = self._body(number, stream=True)
        async with self._http.stream("POST", "/chat/completions", json=body, headers=UNCACHED) as response:
            lines = [line async for line in response.aiter_lines() if line]
        assert lines[-1] == "data: [DONE]"

    async def _sampled(self, number: int) -> None:
        await self._post(self._body(number, temperature=0.8, top_p=0.95, seed=number, presence_penalty=0.5), **UNCACHED)

    async def _two_choices(self, number: int) -> None:
        assert len((await self._post(self._body(number, n=2, temperature=1.0), **UNCACHED))["choices"]) == 2

    async def _cancelled(self, number: int) -> None:
        body = self._body(number, stream=True, max_tokens=500, ignore_eos=True)
        async with self._http.stream("POST", "/chat/completions", json=body, headers=UNCACHED) as response:
            async for _ in response.aiter_lines():
                return

    async def _schema(self, number: int) -> None:
        named = {"name": "answer", "schema": SCHEMA, "strict": True}
        chosen: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": named}}
        answer = await self._post(self._body(number, max_tokens=200, reasoning_effort="none", **chosen), **UNCACHED)
        if answer["choices"][0]["finish_reason"] == "stop":
            assert "sum" in json.loads(answer["choices"][0]["message"]["content"])

    async def _stored(self, number: int) -> None:
        await self._post(self._body(number % 200, temperature=0, max_tokens=300))

    async def _long_prompt(self, number: int) -> None:
        body = self._body(number, max_tokens=4)
        body["messages"][0]["content"] = "The sum of the parts is the whole. " * 80 + body["messages"][0]["content"]
        await self._post(body, **UNCACHED)


def private_bytes(process: psutil.Process) -> int:
    """What would be free if the process ended."""
    used: int = process.memory_full_info().uss
    return used


def watched(dray: Dray) -> dict[str, psutil.Process]:
    [engine] = dray.processes("deployments.engine.core")
    [replica] = [parent for parent in [engine.parent()] if parent is not None]
    [router] = dray.processes("ServeReplica:dray:router")
    return {"router": router, "engine": engine, "replica": replica}


async def run(dray: Dray) -> tuple[Counter[str], dict[str, list[int]]]:
    """Answers all requests; returns how many of each kind, and samples of the memory of each process."""
    processes = watched(dray)
    samples: dict[str, list[int]] = {name: [] for name in processes}
    numbers = iter(range(REQUESTS))
    async with httpx.AsyncClient(base_url=dray.url, timeout=120) as http:
        clients = Clients(http)

        async def ask_until_over() -> None:
            for number in numbers:
                await clients.ask(number)
                if number % max(1, REQUESTS // SAMPLES) == 0:
                    for name, process in processes.items():
                        samples[name].append(private_bytes(process))

        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(ask_until_over())
    return clients.done, samples


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_memory_stays_where_it_is_after_thousands_of_requests() -> None:
    with started_dray(settings={"DRAY_MODEL__MAX_NUM_BATCHED_TOKENS": "64"}) as dray:
        done, samples = asyncio.run(run(dray))
    assert sum(done.values()) == REQUESTS and min(done.values()) >= REQUESTS // 8
    grown = {}
    for name, sizes in samples.items():
        fifth = len(sizes) // 5
        warm, end = statistics.median(sizes[2 * fifth : 3 * fifth]), statistics.median(sizes[-fifth:])
        print(f"{name}: {', '.join(f'{size / 2**20:.0f}' for size in sizes)} MiB")
        if end > warm * (1 + GROWTH) + GROWTH_BYTES:
            grown[name] = f"from {warm / 2**20:.0f} to {end / 2**20:.0f} MiB"
    assert not grown
