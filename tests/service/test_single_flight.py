"""Several routers as one: equal questions at the same time cost one generation, whoever of those who ask goes away."""

import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster.client import metrics
from cluster.ports import free_port
from tests.conftest import MODEL, Dray, wait_for
from tests.service.test_faults import redis_process

ROUTERS = 3


@pytest.fixture(scope="module")
def several() -> Iterator[Dray]:
    folder = Path(tempfile.mkdtemp(prefix="dray-t-"))
    dray = Dray(folder, free_port())
    started = dray.run("up", "--detach", DRAY_ROUTER__REPLICAS=str(ROUTERS), DRAY_LIMITS__MAX_QUEUED="1000")
    assert started.returncode == 0, started.stderr
    yield dray
    dray.run("down")
    shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Told:
    """What one client was told. whole: to the end."""

    result: str = ""
    reasoning: str = ""
    text: str = ""
    whole: bool = False
    pieces: int = 0
    usage: dict[str, Any] = field(default_factory=dict)


def long(tokens: int) -> dict[str, Any]:
    """A question that no other test asks, answered at some length: the model goes on beyond its end."""
    content = f"What is {secrets.randbelow(1000)} + {secrets.randbelow(1000)}?"
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
    }


async def ask(
    client: httpx.AsyncClient, body: dict[str, Any], *, stream: bool, leave_after: int = 0, told: Told | None = None
) -> Told:
    """Asks; leaves after so many pieces, if that is not 0. A connection that breaks gives what came until then.

    told: shows, from the first piece of a stream, what it has been told.
    """
    told = told or Told()
    try:
        if not stream:
            answer = await client.post("/v1/chat/completions", json=body)
            if answer.status_code == 500 and answer.text == "Internal Server Error":
                return told  # HAProxy's word for a router that died
            assert answer.status_code == 200, answer.text
            message = answer.json()["choices"][0]["message"]
            return Told(
                answer.headers["x-dray-cache"],
                message.get("reasoning_content", ""),
                message["content"],
                True,
                1,
                answer.json()["usage"],
            )
        asked = body | {"stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=asked) as response:
            assert response.status_code == 200, await response.aread()
            told.result = response.headers["x-dray-cache"]
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    told.whole = True
                if not line.startswith("data: {"):
                    continue
                for choice in json.loads(line[6:])["choices"]:
                    told.reasoning += choice["delta"].get("reasoning_content", "")
                    told.text += choice["delta"].get("content", "")
                    told.pieces += 1
                if leave_after and told.pieces >= leave_after:
                    return told
    except httpx.TransportError:
        pass
    return told


async def ask_all(dray: Dray, body: dict[str, Any], count: int, **more: Any) -> list[Told]:
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=dray.root, timeout=120, limits=limits) as client:
        return list(await asyncio.gather(*(ask(client, body, stream=n % 2 == 0, **more) for n in range(count))))


def counted(dray: Dray) -> Counter[str]:
    samples = metrics(dray.url)
    results = Counter({labels["result"]: int(n) for labels, n in samples.get("dray_answer_cache_total", [])})
    results["tokens"] = int(sum(n for _, n in samples.get("dray_completion_tokens_total", [])))
    return results


def routers(dray: Dray) -> list[psutil.Process]:
    return dray.processes("ray::ServeReplica:dray:router")


def test_two_hundred_equal_requests_cost_one_generation(several: Dray) -> None:
    body, before = long(1900), counted(several)
    told = asyncio.run(ask_all(several, body, 200))
    assert all(one.whole for one in told)
    assert len({(one.reasoning, one.text) for one in told}) == 1
    results = Counter(one.result for one in told)
    assert results == {"miss": 1, "join": 199}
    streamed = [one for one in told[::2] if one.result == "join"]
    assert min(one.pieces for one in streamed) > 5, "text appears as it is made"
    after = counted(several)
    assert after["miss"] - before["miss"] == 1 and after["tokens"] - before["tokens"] == 1900
    assert len(routers(several)) == ROUTERS


def test_who_asked_first_may_leave(several: Dray) -> None:
    async def work() -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=several.root, timeout=60, limits=limits) as client:

            async def begun(*all_told: Told) -> list[asyncio.Task[Told]]:
                tasks = [asyncio.create_task(ask(client, body, stream=True, told=told)) for told in all_told]
                while not all(told.pieces for told in all_told):
                    await asyncio.sleep(0.01)
                return tasks

            [leaving] = await begun(first)
            staying = await begun(*others)
            leaving.cancel()
            await asyncio.gather(*staying)

    first, others = Told(), [Told() for _ in range(9)]
    body, before = long(1900), counted(several)
    asyncio.run(work())
    assert first.result == "miss" and not first.whole
    assert all(one.whole and one.result == "join" for one in others)
    [(reasoning, text)] = {(one.reasoning, one.text) for one in others}
    assert (reasoning + text).startswith(first.reasoning + first.text)
    assert counted(several)["tokens"] - before["tokens"] == 1900


def test_a_killed_routers_flight_is_carried_on_by_those_who_follow(several: Dray) -> None:
    """Which router leads is not to be seen from outside: routers are killed until it was that one."""
    carried = False
    for _ in range(12):
        wait_for(lambda: len(routers(several)) == ROUTERS, 60)
        wait_for(lambda: httpx.get(f"{several.root}/health/ready").status_code == 200, 60)
        body = long(1900)
        victim = secrets.choice(routers(several))

        async def work(body: dict[str, Any], victim: psutil.Process) -> list[Told]:
            async def kill() -> None:
                await asyncio.sleep(0.4)
                os.kill(victim.pid, signal.SIGKILL)

            return (await asyncio.gather(ask_all(several, body, 18), kill()))[0]

        told = asyncio.run(work(body, victim))
        whole = [one for one in told if one.whole]
        assert len(whole) >= 6, "those on the other routers get all of it"
        assert len({(one.reasoning, one.text) for one in whole}) == 1
        assert all(one.result in ("miss", "join") for one in whole)
        one, other = map(int, re.findall(r"\d+", body["messages"][0]["content"]))
        assert str(one + other) in whole[0].reasoning
        assert {json.dumps(one.usage.get("completion_tokens")) for one in whole if one.usage} <= {"1900"}
        if all(one.result == "join" for one in whole):
            carried = True
            break
    assert carried, "the leader was never the one that was killed"


def cut_off(dray: Dray, body: dict[str, Any], headers: dict[str, str]) -> str:
    """What a stream tells until its router dies, as most do; nothing where it is the one that is left."""
    told, killed = "", False
    try:
        with httpx.stream("POST", f"{dray.url}/chat/completions", json=body, headers=headers, timeout=60) as answer:
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    return ""
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        told += choice["delta"].get("reasoning_content", "") + choice["delta"].get("content", "")
                if len(told) > 1300 and not killed:
                    killed = True
                    for router in secrets.SystemRandom().sample(routers(dray), ROUTERS - 1):
                        router.kill()
    except httpx.TransportError:
        pass
    return told


def test_a_retry_goes_on_where_the_killed_routers_answer_was(several: Dray) -> None:
    """Drawn at random, so that only the very same generation can give the same text."""
    for _ in range(12):
        wait_for(lambda: len(routers(several)) == ROUTERS, 60)
        body = long(1900) | {"temperature": 1.5, "stream": True}
        headers = {"Idempotency-Key": secrets.token_hex(8)}
        if told := cut_off(several, body, headers):
            break
    assert len(told) > 1300, "its router was never among those that were killed"
    whole = body | {"stream": False}
    again = [httpx.post(f"{several.url}/chat/completions", json=whole, headers=headers, timeout=60) for _ in range(2)]
    messages = [one.json()["choices"][0]["message"] for one in again]
    assert again[1].headers["x-dray-cache"] == "hit" and messages[0] == messages[1]
    text = messages[0].get("reasoning_content", "") + messages[0]["content"]
    # What had not been told to Redis yet when the router died is drawn anew.
    assert text[:500] == told[:500]
    other = httpx.post(f"{several.url}/chat/completions", json=whole, timeout=60)
    assert other.json()["choices"][0]["message"] != messages[0]


def question() -> tuple[str, int]:
    one, other = secrets.randbelow(900) + 100, secrets.randbelow(900) + 100
    return f"What is {one} + {other}?", one + other


async def flood(dray: Dray, count: int, at_a_time: int) -> Counter[str]:
    """Different questions, some asked twice, some by clients that leave; meanwhile Redis comes and goes."""
    seen: Counter[str] = Counter()
    turns = asyncio.Semaphore(at_a_time)
    over = asyncio.Event()

    async def one(client: httpx.AsyncClient, place: int, text: str, right: int) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0}
        async with turns:
            if place % 7 == 0:
                await ask(client, body, stream=True, leave_after=3)
                seen["left"] += 1
                return
            told = await ask(client, body, stream=place % 2 == 0)
        assert told.whole, f"no whole answer to {text}"
        numbers, operands = ({int(number) for number in re.findall(r"\d+", said)} for said in (told.text, text))
        seen["others" if not operands & numbers else "right" if right in numbers else "wrong sum"] += 1
        seen[told.result] += 1

    async def trouble() -> None:
        while not over.is_set():
            server = await asyncio.to_thread(wait_for, lambda: redis_process(dray))
            if secrets.randbelow(2):
                server.kill()
            else:
                server.suspend()
                await asyncio.sleep(0.7)
                server.resume()
            await asyncio.sleep(1.5)

    asked = [question() for _ in range(count)]
    asked += secrets.SystemRandom().sample(asked, count // 4)
    limits = httpx.Limits(max_connections=at_a_time)
    async with httpx.AsyncClient(base_url=dray.root, timeout=120, limits=limits) as client:
        shaking = asyncio.create_task(trouble())
        await asyncio.gather(*(one(client, place, text, right) for place, (text, right) in enumerate(asked)))
        over.set()
        await shaking
    return seen


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_nobody_gets_anothers_answer(several: Dray, count: int) -> None:
    wait_for(lambda: len(routers(several)) == ROUTERS, 60)
    seen = asyncio.run(flood(several, count, min(count // 3, 200)))
    answered = seen["right"] + seen["wrong sum"] + seen["others"]
    assert answered + seen["left"] == count + count // 4
    assert seen["others"] == 0, seen
    assert seen["right"] > 0.98 * answered, seen
