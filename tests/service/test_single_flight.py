"""Several routers act as one: equal questions at the same time cost one generation, even if a router is lost."""

import asyncio
import json
import re
import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pytest

from cluster.client import metrics
from tests.conftest import MODEL, Dray, wait_for
from tests.service.conftest import ROUTERS
from tests.service.test_faults import redis_process


@dataclass
class Received:
    """What a client has received. result: of the cache. complete: whether it ended. pieces: number of stream chunks."""

    result: str = ""
    reasoning: str = ""
    text: str = ""
    complete: bool = False
    pieces: int = 0
    usage: dict[str, Any] = field(default_factory=dict)


def long_request(tokens: int) -> dict[str, Any]:
    """A question that no other test asks, with a long answer: the model continues beyond its own end."""
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
    """Sends a request and returns what was received, up to the point where the connection broke, if it did.

    url: of a router; empty: the client's base URL. leave_after: number of pieces after which to disconnect; 0: never.
    received: filled while the answer arrives.
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
    if answer.status_code == 502 and answer.json()["error"]["code"] == "router_ended":
        return received
    assert answer.status_code == 200, answer.text
    message = answer.json()["choices"][0]["message"]
    received.result, received.complete, received.pieces = answer.headers["x-dray-cache"], True, 1
    received.reasoning, received.text = message.get("reasoning_content") or "", message["content"]
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
            received.reasoning += choice["delta"].get("reasoning_content") or ""
            received.text += choice["delta"].get("content") or ""
            received.pieces += 1
        if leave_after and received.pieces >= leave_after:
            return


async def ask_all(dray: Dray, body: dict[str, Any], count: int) -> list[Received]:
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=dray.root, timeout=120, limits=limits) as client:
        return list(await asyncio.gather(*(ask(client, body, stream=n % 2 == 0) for n in range(count))))


def counts(dray: Dray) -> Counter[str]:
    """The number of answers by cache result, and of generated tokens."""
    samples = metrics(dray.url)
    results = Counter({labels["result"]: int(n) for labels, n in samples.get("dray_answer_cache_total", [])})
    results["tokens"] = int(sum(n for _, n in samples.get("dray_completion_tokens_total", [])))
    return results


def routers(dray: Dray) -> list[psutil.Process]:
    return dray.processes("ray::ServeReplica:dray:router")


def test_two_hundred_equal_requests_cost_one_generation(several: Dray) -> None:
    wait_for(lambda: len(routers(several)) == ROUTERS, 60)
    body, before = long_request(1900), counts(several)
    answers = asyncio.run(ask_all(several, body, 200))
    assert all(answer.complete for answer in answers)
    assert len({(answer.reasoning, answer.text) for answer in answers}) == 1
    assert Counter(answer.result for answer in answers) == {"miss": 1, "join": 199}
    streamed = [answer for answer in answers[::2] if answer.result == "join"]
    assert min(answer.pieces for answer in streamed) > 5, "text appears as it is generated"
    after = counts(several)
    assert after["miss"] - before["miss"] == 1 and after["tokens"] - before["tokens"] == 1900
    assert len(routers(several)) == ROUTERS


def test_the_first_client_of_a_shared_generation_may_leave(several: Dray) -> None:
    async def work() -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=several.root, timeout=60, limits=limits) as client:

            async def start(*clients: Received) -> list[asyncio.Task[Received]]:
                tasks = [asyncio.create_task(ask(client, body, stream=True, received=answer)) for answer in clients]
                while not all(answer.pieces for answer in clients):
                    await asyncio.sleep(0.01)
                return tasks

            [leaving] = await start(first)
            staying = await start(*followers)
            leaving.cancel()
            await asyncio.gather(*staying)

    first, followers = Received(), [Received() for _ in range(9)]
    body, before = long_request(1900), counts(several)
    asyncio.run(work())
    assert first.result == "miss" and not first.complete
    assert all(answer.complete and answer.result == "join" for answer in followers)
    [(reasoning, text)] = {(answer.reasoning, answer.text) for answer in followers}
    assert (reasoning + text).startswith(first.reasoning + first.text)
    assert counts(several)["tokens"] - before["tokens"] == 1900


def url_of(router: psutil.Process) -> str:
    """The URL at which a router takes requests directly, without HAProxy."""

    def serves(port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health/live", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def port() -> int | None:
        sockets = router.net_connections("tcp")
        ports = [socket.laddr.port for socket in sockets if socket.status == psutil.CONN_LISTEN]
        return next((port for port in ports if serves(port)), None)

    # A router that has just started may not listen yet.
    return f"http://127.0.0.1:{wait_for(port, 60)}"


def test_an_answer_that_was_pinned_is_given_by_every_router(several: Dray) -> None:
    wait_for(lambda: len(routers(several)) == ROUTERS, 60)
    text, _ = question()
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0}
    urls = [f"{url_of(router)}/v1/chat/completions" for router in routers(several)]

    def headers(url: str) -> httpx.Headers:
        return httpx.post(url, json=body, timeout=60).raise_for_status().headers

    given = [headers(url) for url in urls]
    assert [one["x-dray-cache"] for one in given] == ["miss"] + ["hit"] * (ROUTERS - 1)
    done = several.run("answers", "pin", given[0]["x-dray-cache-key"])
    assert done.returncode == 0, done.stderr
    # Each looks for changes twice a second.
    wait_for(lambda: {headers(url)["x-dray-cache"] for url in urls} == {"curated"}, 10)


def test_followers_continue_the_flight_of_a_killed_router(several: Dray) -> None:
    wait_for(lambda: len(routers(several)) == ROUTERS, 60)
    body, leader = long_request(1900), Received()
    victim, *survivors = secrets.SystemRandom().sample(routers(several), ROUTERS)
    urls, victims_url = [url_of(router) for router in survivors], url_of(victim)

    async def work() -> list[Received]:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with asyncio.timeout(100), httpx.AsyncClient(timeout=100, limits=limits) as client:

            def start(url: str, received: Received, *, stream: bool) -> asyncio.Task[Received]:
                return asyncio.create_task(ask(client, body, stream=stream, url=url, received=received))

            leading = start(victims_url, leader, stream=True)
            while not leader.pieces:
                await asyncio.sleep(0.01)
            streams = [Received() for _ in urls * 3]
            tasks = [start(url, answer, stream=True) for url, answer in zip(urls * 3, streams, strict=True)]
            tasks += [start(url, Received(), stream=False) for url in urls * 3]
            # Through HAProxy a request may get to the victim, and be cut off with it.
            tasks += [start(several.root, Received(), stream=stream) for stream in (True, False) * 2]
            while not all(answer.pieces for answer in streams):
                await asyncio.sleep(0.01)
            assert leader.result == "miss" and not any(answer.complete for answer in (leader, *streams))
            victim.kill()
            await leading
            return list(await asyncio.gather(*tasks))

    answers = asyncio.run(work())
    assert not leader.complete
    assert all(answer.complete for answer in answers[: 6 * len(urls)]), "clients of the other routers get all of it"
    followers = [answer for answer in answers if answer.complete]
    assert all(answer.result == "join" for answer in followers)
    [(reasoning, text)] = {(answer.reasoning, answer.text) for answer in followers}
    assert (reasoning + text).startswith(leader.reasoning + leader.text)
    first, second = map(int, re.findall(r"\d+", body["messages"][0]["content"]))
    assert str(first + second) in reasoning
    assert {answer.usage["completion_tokens"] for answer in followers if answer.usage} == {1900}


def cut_off_stream(url: str, router: psutil.Process, body: dict[str, Any], headers: dict[str, str]) -> str:
    """The text of a stream up to the point where its router is killed, after 1300 characters."""
    text, killed = "", False
    try:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60) as answer:
            for line in answer.iter_lines():
                assert line != "data: [DONE]", "its router was killed too late"
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        text += (choice["delta"].get("reasoning_content") or "") + (
                            choice["delta"].get("content") or ""
                        )
                if len(text) > 1300 and not killed:
                    router.kill()
                    killed = True  # and read what is still on its way
    except httpx.TransportError:
        pass
    return text


def test_a_retry_continues_the_answer_of_a_killed_router(several: Dray) -> None:
    """The answer is sampled at random, so that only the same generation can give the same text."""
    wait_for(lambda: len(routers(several)) == ROUTERS, 60)
    body = long_request(1900) | {"temperature": 1.5, "stream": True}
    headers = {"Idempotency-Key": secrets.token_hex(8)}
    router = secrets.choice(routers(several))
    text = cut_off_stream(url_of(router), router, body, headers)
    assert len(text) > 1300
    unstreamed = body | {"stream": False}
    retries = [
        httpx.post(f"{several.url}/chat/completions", json=unstreamed, headers=headers, timeout=60) for _ in range(2)
    ]
    messages = [retry.json()["choices"][0]["message"] for retry in retries]
    assert retries[1].headers["x-dray-cache"] == "hit" and messages[0] == messages[1]
    # Text that was not published yet when the router died is sampled again.
    assert ((messages[0].get("reasoning_content") or "") + messages[0]["content"])[:500] == text[:500]
    without_key = httpx.post(f"{several.url}/chat/completions", json=unstreamed, timeout=60)
    assert without_key.json()["choices"][0]["message"] != messages[0]


def question() -> tuple[str, int]:
    first, second = secrets.randbelow(900) + 100, secrets.randbelow(900) + 100
    return f"What is {first} + {second}?", first + second


async def flood(dray: Dray, count: int, concurrency: int) -> Counter[str]:
    """Sends different questions, some of them twice, some by clients that leave, while Redis is killed and paused.

    Returns the number of answers by outcome and by cache result.
    """
    outcomes: Counter[str] = Counter()
    slots = asyncio.Semaphore(concurrency)
    done = asyncio.Event()

    async def ask_one(client: httpx.AsyncClient, index: int, text: str, right: int) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0}
        async with slots:
            if index % 7 == 0:
                await ask(client, body, stream=True, leave_after=3)
                outcomes["left"] += 1
                return
            received = await ask(client, body, stream=index % 2 == 0)
        assert received.complete, f"no complete answer to {text}"
        numbers, operands = ({int(number) for number in re.findall(r"\d+", part)} for part in (received.text, text))
        outcome = "another's answer" if not operands & numbers else "right" if right in numbers else "wrong sum"
        outcomes[outcome] += 1
        outcomes[received.result] += 1

    async def disturb_redis() -> None:
        while not done.is_set():
            server = await asyncio.to_thread(wait_for, lambda: redis_process(dray))
            if secrets.randbelow(2):
                server.kill()
            else:
                server.suspend()
                await asyncio.sleep(0.7)  # the length of the pause
                server.resume()
            await asyncio.sleep(1.5)  # until the next fault

    questions = [question() for _ in range(count)]
    questions += secrets.SystemRandom().sample(questions, count // 4)
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=dray.root, timeout=120, limits=limits) as client:
        disturbing = asyncio.create_task(disturb_redis())
        await asyncio.gather(*(ask_one(client, index, text, right) for index, (text, right) in enumerate(questions)))
        done.set()
        await disturbing
    return outcomes


@pytest.mark.parametrize("count", [120, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_client_gets_the_answer_to_another_question(several: Dray, count: int) -> None:
    wait_for(lambda: len(routers(several)) == ROUTERS, 60)
    outcomes = asyncio.run(flood(several, count, min(count // 3, 200)))
    answered = outcomes["right"] + outcomes["wrong sum"] + outcomes["another's answer"]
    assert answered + outcomes["left"] == count + count // 4
    assert outcomes["another's answer"] == 0, outcomes
    assert outcomes["right"] > 0.98 * answered, outcomes
