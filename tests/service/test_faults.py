"""Faults of the real processes: engines killed and stuck, Redis killed and paused. Clients notice at most a pause."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import psutil
import pytest

from cluster.client import metrics
from tests.conftest import MODEL, Dray, wait_for
from tests.service.test_cache import ask, new_question


def engine_pid(dray: Dray) -> int:
    [replica] = wait_for(lambda: dray.status()["replicas"])
    pid: int = replica["engine_pid"]
    return pid


def redis_process(dray: Dray, name: str = "redis") -> psutil.Process:
    """The Redis server whose socket is in this folder of the Dray."""
    socket = str(dray.folder / "s" / name / "redis.sock")
    [server] = [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] and socket in " ".join(process.info["cmdline"]) and process.name().endswith("server")
    ]
    return server


def carried_on(dray: Dray) -> float:
    """The number of streams that another engine has continued."""
    return sum(value for _, value in metrics(dray.url).get("dray_streams_carried_on_total", []))


@pytest.fixture
def paused_engine(dray: Dray) -> Iterator[int]:
    """The process id of the engine, which is paused. If it still exists after the test, it continues."""
    pid = engine_pid(dray)
    os.kill(pid, signal.SIGSTOP)
    yield pid
    if psutil.pid_exists(pid):
        os.kill(pid, signal.SIGCONT)


QUESTION = "What is 345 times 678?"
LIMITS = itertools.count(400)
"""Values of max_tokens: each gives another cache key, and no answer is that long."""


def answer(http: httpx.Client) -> dict[str, Any]:
    """A newly generated answer to QUESTION."""
    response = ask(http, QUESTION, max_tokens=next(LIMITS))
    assert response.headers["x-dray-cache"] == "miss"
    message: dict[str, Any] = response.json()["choices"][0]["message"]
    return message


@pytest.fixture(scope="module")
def undisturbed(http: httpx.Client) -> dict[str, Any]:
    """The answer to QUESTION without any fault."""
    return answer(http)


def answer_in_thread(http: httpx.Client) -> tuple[threading.Thread, list[dict[str, Any]]]:
    """Asks in a thread, which appends the answer to the list."""
    answers: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(answer(http)))
    thread.start()
    return thread, answers


def test_a_request_survives_the_death_of_its_engine(
    undisturbed: dict[str, Any], dray: Dray, http: httpx.Client, paused_engine: int
) -> None:
    thread, answers = answer_in_thread(http)
    os.kill(paused_engine, signal.SIGKILL)
    thread.join(60)
    assert answers == [undisturbed]
    wait_for(lambda: engine_pid(dray) != paused_engine)


def test_a_stream_survives_the_death_of_its_engine(
    undisturbed: dict[str, Any], dray: Dray, client: openai.OpenAI
) -> None:
    before = carried_on(dray)
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
    assert carried_on(dray) == before + 1
    wait_for(lambda: engine_pid(dray) != pid)


def test_a_request_survives_the_death_of_its_replica(
    undisturbed: dict[str, Any], dray: Dray, http: httpx.Client
) -> None:
    pid = engine_pid(dray)
    os.kill(pid, signal.SIGSTOP)
    thread, answers = answer_in_thread(http)
    replica = psutil.Process(pid).parent()
    assert replica is not None
    replica.kill()
    thread.join(90)
    assert answers == [undisturbed]
    assert not psutil.pid_exists(pid), "an engine does not outlive its replica, even a stopped one"


def test_a_stuck_engine_is_replaced(undisturbed: dict[str, Any], http: httpx.Client, paused_engine: int) -> None:
    thread, answers = answer_in_thread(http)
    thread.join(90)
    assert answers == [undisturbed]
    assert not psutil.pid_exists(paused_engine)


def test_a_killed_redis_comes_back_and_is_used_again(
    undisturbed: dict[str, Any], dray: Dray, http: httpx.Client
) -> None:
    question = new_question()
    ask(http, question)
    killed = redis_process(dray)
    os.kill(killed.pid, signal.SIGKILL)
    for _ in range(3):
        assert answer(http) == undisturbed
    wait_for(lambda: ask(http, question).headers["x-dray-cache"] == "hit")
    assert redis_process(dray).pid != killed.pid


def test_a_paused_redis_delays_no_request_for_long(undisturbed: dict[str, Any], dray: Dray, http: httpx.Client) -> None:
    server = redis_process(dray)
    server.suspend()
    try:
        start = time.monotonic()
        assert answer(http) == undisturbed
        # A few calls to Redis, each given up after cache.timeout_s (2 s in tests), until the circuit opens.
        assert time.monotonic() - start < 30
    finally:
        server.resume()
    question = new_question()
    wait_for(lambda: ask(http, question).headers["x-dray-cache"] == "hit")
