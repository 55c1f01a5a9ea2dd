"""Faults of the real processes: engines killed and stuck, Redis killed, clients gone. Clients see a pause at most."""

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.conftest import MODEL, Dray, wait_for
from tests.service.test_cache import ask, new_question


def engine_pid(dray: Dray) -> int:
    [replica] = wait_for(lambda: dray.status()["replicas"])
    pid: int = replica["engine_pid"]
    return pid


def redis_process(dray: Dray) -> psutil.Process:
    """The server whose socket lies in this Dray's folder."""
    socket = str(dray.folder / "s" / "redis" / "redis.sock")
    [found] = [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] and socket in " ".join(process.info["cmdline"]) and process.name().endswith("server")
    ]
    return found


@pytest.fixture
def paused_engine(dray: Dray) -> Iterator[int]:
    """The engine's process id, while the engine is stopped; whatever is left of it goes on afterwards."""
    pid = engine_pid(dray)
    os.kill(pid, signal.SIGSTOP)
    yield pid
    if psutil.pid_exists(pid):
        os.kill(pid, signal.SIGCONT)


QUESTION = "What is 345 times 678?"
LIMITS = itertools.count(400)
"""Each limit makes another cache key, and none of them is reached."""


def answer(http: httpx.Client) -> dict[str, Any]:
    """The answer to QUESTION, from the engine and not from the cache."""
    given = ask(http, QUESTION, max_tokens=next(LIMITS))
    assert given.headers["x-dray-cache"] == "miss"
    message: dict[str, Any] = given.json()["choices"][0]["message"]
    return message


@pytest.fixture(scope="module")
def undisturbed(http: httpx.Client) -> dict[str, Any]:
    return answer(http)


def answering(http: httpx.Client) -> tuple[threading.Thread, list[dict[str, Any]]]:
    """Asks in a thread; the answer comes into the list."""
    given: list[dict[str, Any]] = []

    def work() -> None:
        given.append(answer(http))

    thread = threading.Thread(target=work)
    thread.start()
    return thread, given


def test_killed_engine_heals_and_the_request_is_answered(
    undisturbed: dict[str, Any], dray: Dray, http: httpx.Client, paused_engine: int
) -> None:
    thread, given = answering(http)
    os.kill(paused_engine, signal.SIGKILL)
    thread.join(60)
    assert given == [undisturbed]
    wait_for(lambda: engine_pid(dray) != paused_engine)
    assert "dray_streams_carried_on_total" in http.get("/metrics").text


def test_engine_killed_in_the_middle_of_a_stream(
    undisturbed: dict[str, Any], dray: Dray, client: openai.OpenAI
) -> None:
    pid, killed, reasoning, text = engine_pid(dray), False, "", ""
    for chunk in client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], stream=True, max_tokens=next(LIMITS)
    ):
        delta = chunk.choices[0].delta
        reasoning += getattr(delta, "reasoning_content", None) or ""
        text += delta.content or ""
        if reasoning and not killed:
            os.kill(pid, signal.SIGKILL)
            killed = True
    assert (reasoning, text) == (undisturbed["reasoning_content"], undisturbed["content"])
    wait_for(lambda: engine_pid(dray) != pid)


def test_replica_killed_with_its_engine(undisturbed: dict[str, Any], dray: Dray, http: httpx.Client) -> None:
    pid = engine_pid(dray)
    os.kill(pid, signal.SIGSTOP)
    thread, given = answering(http)
    replica = psutil.Process(pid).parent()
    assert replica is not None
    replica.kill()
    thread.join(90)
    assert given == [undisturbed]
    assert not psutil.pid_exists(pid), "an engine does not outlive its replica, even a stopped one"


def test_stuck_engine_is_replaced(undisturbed: dict[str, Any], http: httpx.Client, paused_engine: int) -> None:
    thread, given = answering(http)
    thread.join(90)
    assert given == [undisturbed]
    assert not psutil.pid_exists(paused_engine)


def test_redis_killed_and_back(undisturbed: dict[str, Any], dray: Dray, http: httpx.Client) -> None:
    question = new_question()
    ask(http, question)
    killed = redis_process(dray)
    os.kill(killed.pid, signal.SIGKILL)
    for _ in range(3):
        assert answer(http) == undisturbed
    wait_for(lambda: ask(http, question).headers["x-dray-cache"] == "hit")
    assert redis_process(dray).pid != killed.pid


def test_a_paused_redis_delays_nothing_for_long(undisturbed: dict[str, Any], dray: Dray, http: httpx.Client) -> None:
    server = redis_process(dray)
    server.suspend()
    try:
        assert answer(http) == undisturbed
    finally:
        server.resume()
    question = new_question()
    wait_for(lambda: ask(http, question).headers["x-dray-cache"] == "hit")
