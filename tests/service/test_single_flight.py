"""Several routers act as one: equal questions at the same time cost one generation, whichever client or router goes."""

import asyncio
import json
import re
import secrets
import shutil
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
class Received:
    """What one client has received. complete: to the end. pieces: of a stream."""

    result: str = ""
    reasoning: str = ""
    text: str = ""
    complete: bool = False
    pieces: int = 0
    usage: dict[str, Any] = field(default_factory=dict)


def long(tokens: int) -> dict[str, Any]:
    """A question that no other test asks, with a long answer: the model continues beyond its end."""
    content = f"What is {secrets.randbelow(1000)} + {secrets.randbelow(1000)}?"
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
    }


async def ask(
    client: httpx.AsyncClient,
    body: dict[str, Any],
    *,
    stream: bool,
    url: str = "",
    leave_after: int = 0,
    received: Received | None = None,
) -> Received:
    """Asks; returns what came until a connection broke, if one did.

    url: of a router; empty: the client's. leave_after: disconnects after so many pieces. received: filled meanwhile.
    """
    received, path = received or Received(), f"{url}/v1/chat/completions"
    try:
        if stream:
            async with client.stream("POST", path, json=body | {"stream": True}) as response:
                await read_stream(response, received, leave_after)
            return received
        answer = await client.post(path, json=body)
    except httpx.TransportError:
        return received
    if answer.status_code == 500 and answer.text == "Internal Server Error":
        return received  # HAProxy's response for a router that died
    assert answer.status_code == 200, answer.text
    message = answer.json()["choices"][0]["message"]
    received.result, received.complete, received.pieces = answer.headers["x-dray-cache"], True, 1
    received.reasoning, received.text = message.get("reasoning_content", ""), message["content"]
    received.usage = answer.json()["usage"]
    return received


async def read_stream(response: httpx.Response, received: Received, leave_after: int) -> None:
    assert response.status_code == 200, await response.aread()
    received.result = response.headers["x-dray-cache"]
    async for line in response.aiter_lines():
        received.complete = received.complete or line == "data: [DONE]"
        if not line.startswith("data: {"):
            continue
        for choice in json.loads(line[6:])["choices"]:
            received.reasoning += choice["delta"].get("reasoning_content", "")
            received.text += choice["delta"].get("content", "")
            received.pieces += 1
        if leave_after and received.pieces >= leave_after:
            return


async def ask_all(dray: Dray, body: dict[str, Any], count: int) -> list[Received]:
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=dray.root, timeout=120, limits=limits) as client:
        return list(await asyncio.gather(*(ask(client, body, stream=n % 2 == 0) for n in range(count))))


def counted(dray: Dray) -> Counter[str]:
    samples = metrics(dray.url)
    results = Counter({labels["result"]: int(n) for labels, n in samples.get("dray_answer_cache_total", [])})
    results["tokens"] = int(sum(n for _, n in samples.get("dray_completion_tokens_total", [])))
    return results


def routers(dray: Dray) -> list[psutil.Process]:
    return dray.processes("ray::ServeReplica:dray:router")


def test_two_hundred_equal_requests_cost_one_generation(several: Dray) -> None:
    body, before = long(1900), counted(several)
    answers = asyncio.run(ask_all(several, body, 200))
    assert all(one.complete for one in answers)
    assert len({(one.reasoning, one.text) for one in answers}) == 1
    assert Counter(one.result for one in answers) == {"miss": 1, "join": 199}
    streamed = [one for one in answers[::2] if one.result == "join"]
    assert min(one.pieces for one in streamed) > 5, "text appears as it is generated"
    after = counted(several)
    assert after["miss"] - before["miss"] == 1 and after["tokens"] - before["tokens"] == 1900
    assert len(routers(several)) == ROUTERS


def test_who_asked_first_may_leave(several: Dray) -> None:
    async def work() -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=several.root, timeout=60, limits=limits) as client:

            async def start(*clients: Received) -> list[asyncio.Task[Received]]:
                tasks = [asyncio.create_task(ask(client, body, stream=True, received=one)) for one in clients]
                while not all(one.pieces for one in clients):
                    await asyncio.sleep(0.01)
                return tasks

            [leaving] = await start(first)
            staying = await start(*others)
            leaving.cancel()
            await asyncio.gather(*staying)

    first, others = Received(), [Received() for _ in range(9)]
    body, before = long(1900), counted(several)
    asyncio.run(work())
    assert first.result == "miss" and not first.complete
    assert all(one.complete and one.result == "join" for one in others)
    [(reasoning, text)] = {(one.reasoning, one.text) for one in others}
    assert (reasoning + text).startswith(first.reasoning + first.text)
    assert counted(several)["tokens"] - before["tokens"] == 1900


def url_of(router: psutil.Process) -> str:
    """Where a router takes requests itself, beside HAProxy."""

    def serves(port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health/live", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    listening = [one.laddr.port for one in router.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    return f"http://127.0.0.1:{next(port for port in listening if serves(port))}"


def test_a_killed_routers_flight_is_continued_by_those_who_follow(several: Dray) -> None:
    wait_for(lambda: len(routers(several)) == ROUTERS, 60)
    body, leader = long(1900), Received()
    victim, *others = secrets.SystemRandom().sample(routers(several), ROUTERS)
    urls, victims_url = [url_of(router) for router in others], url_of(victim)

    async def work() -> list[Received]:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with asyncio.timeout(100), httpx.AsyncClient(timeout=100, limits=limits) as client:

            def start(url: str, received: Received, *, stream: bool) -> asyncio.Task[Received]:
                return asyncio.create_task(ask(client, body, stream=stream, url=url, received=received))

            leading = start(victims_url, leader, stream=True)
            while not leader.pieces:
                await asyncio.sleep(0.01)
            streams = [Received() for _ in urls * 3]
            tasks = [start(url, one, stream=True) for url, one in zip(urls * 3, streams, strict=True)]
            tasks += [start(url, Received(), stream=False) for url in urls * 3]
            # Through HAProxy a request may get to the victim, and be cut off with it.
            tasks += [start(several.root, Received(), stream=stream) for stream in (True, False) * 2]
            while not all(one.pieces for one in streams):
                await asyncio.sleep(0.01)
            assert leader.result == "miss" and not any(one.complete for one in (leader, *streams))
            victim.kill()
            await leading
            return list(await asyncio.gather(*tasks))

    answers = asyncio.run(work())
    assert not leader.complete
    assert all(one.complete for one in answers[: 6 * len(urls)]), "those on the other routers get all of it"
    followers = [one for one in answers if one.complete]
    assert all(one.result == "join" for one in followers)
    [(reasoning, text)] = {(one.reasoning, one.text) for one in followers}
    assert (reasoning + text).startswith(leader.reasoning + leader.text)
    first, second = map(int, re.findall(r"\d+", body["messages"][0]["content"]))
    assert str(first + second) in reasoning
    assert {one.usage["completion_tokens"] for one in followers if one.usage} == {1900}


def cut_off(url: str, router: psutil.Process, body: dict[str, Any], headers: dict[str, str]) -> str:
    """The text of a stream up to the point where its router is killed, after 1300 characters."""
    text = ""
    try:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60) as answer:
            for line in answer.iter_lines():
                assert line != "data: [DONE]", "its router was killed too late"
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        text += choice["delta"].get("reasoning_content", "") + choice["delta"].get("content", "")
                if len(text) > 1300:
                    router.kill()
    except httpx.TransportError:
        pass
    return text


def test_a_retry_continues_where_the_killed_routers_answer_was(several: Dray) -> None:
    """Sampled at random, so that only the very same generation can give the same text."""
    wait_for(lambda: len(routers(several)) == ROUTERS, 60)
    body = long(1900) | {"temperature": 1.5, "stream": True}
    headers = {"Idempotency-Key": secrets.token_hex(8)}
    router = secrets.choice(routers(several))
    text = cut_off(url_of(router), router, body, headers)
    assert len(text) > 1300
    unstreamed = body | {"stream": False}
    retries = [
        httpx.post(f"{several.url}/chat/completions", json=unstreamed, headers=headers, timeout=60) for _ in range(2)
    ]
    messages = [retry.json()["choices"][0]["message"] for retry in retries]
    assert retries[1].headers["x-dray-cache"] == "hit" and messages[0] == messages[1]
    # What was not published yet when the router died is sampled anew.
    assert (messages[0].get("reasoning_content", "") + messages[0]["content"])[:500] == text[:500]
    without_key = httpx.post(f"{several.url}/chat/completions", json=unstreamed, timeout=60)
    assert without_key.json()["choices"][0]["message"] != messages[0]


def question() -> tuple[str, int]:
    first, second = secrets.randbelow(900) + 100, secrets.randbelow(900) + 100
    return f"What is {first} + {second}?", first + second


async def flood(dray: Dray, count: int, concurrency: int) -> Counter[str]:
    """Different questions, some asked twice, some by clients that leave; meanwhile Redis dies and hangs."""
    outcomes: Counter[str] = Counter()
    slots = asyncio.Semaphore(concurrency)
    done = asyncio.Event()

    async def one(client: httpx.AsyncClient, index: int, text: str, right: int) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0}
        async with slots:
            if index % 7 == 0:
                await ask(client, body, stream=True, leave_after=3)
                outcomes["left"] += 1
                return
            received = await ask(client, body, stream=index % 2 == 0)
        assert received.complete, f"no complete answer to {text}"
        answered, operands = ({int(number) for number in re.findall(r"\d+", part)} for part in (received.text, text))
        outcome = "others" if not operands & answered else "right" if right in answered else "wrong sum"
        outcomes[outcome] += 1
        outcomes[received.result] += 1

    async def trouble() -> None:
        while not done.is_set():
            server = await asyncio.to_thread(wait_for, lambda: redis_process(dray))
            if secrets.randbelow(2):
                server.kill()
            else:
                server.suspend()
                await asyncio.sleep(0.7)
                server.resume()
            await asyncio.sleep(1.5)

    questions = [question() for _ in range(count)]
    questions += secrets.SystemRandom().sample(questions, count // 4)
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=dray.root, timeout=120, limits=limits) as client:
        shaking = asyncio.create_task(trouble())
        await asyncio.gather(*(one(client, index, text, right) for index, (text, right) in enumerate(questions)))
        done.set()
        await shaking
    return outcomes


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_nobody_gets_anothers_answer(several: Dray, count: int) -> None:
    wait_for(lambda: len(routers(several)) == ROUTERS, 60)
    outcomes = asyncio.run(flood(several, count, min(count // 3, 200)))
    answered = outcomes["right"] + outcomes["wrong sum"] + outcomes["others"]
    assert answered + outcomes["left"] == count + count // 4
    assert outcomes["others"] == 0, outcomes
    assert outcomes["right"] > 0.98 * answered, outcomes
