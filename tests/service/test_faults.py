"""Faults of the real processes: engines killed and stuck, Redis killed, clients gone. Clients see a pause at most."""

import os
import signal
import threading
import uuid
from collections.abc import Iterator

import httpx
import openai
import psutil
import pytest

from tests.conftest import MODEL, Dray, wait_for
from tests.service.test_cache import ask, new_question


def engine_pid(dray: Dray) -> int:
    [replica] = dray.status()["replicas"]
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


def answered(http: httpx.Client, question: str) -> tuple[threading.Thread, list[str]]:
    """Asks in a thread; the answer's text comes into the list."""
    texts: list[str] = []

    def work() -> None:
        texts.append(ask(http, question).json()["choices"][0]["message"]["content"])

    thread = threading.Thread(target=work)
    thread.start()
    return thread, texts


def test_killed_engine_heals_and_the_request_is_answered(dray: Dray, http: httpx.Client, paused_engine: int) -> None:
    thread, texts = answered(http, new_question())
    os.kill(paused_engine, signal.SIGKILL)
    thread.join(60)
    assert "42" in texts[0]
    assert engine_pid(dray) != paused_engine
    assert "dray_streams_carried_on_total" in http.get("/metrics").text


def test_engine_killed_in_the_middle_of_a_stream(dray: Dray, client: openai.OpenAI) -> None:
    question = f"What is 345 times 678? ({uuid.uuid4()})"

    def stream(kill: bool, limit: int) -> str:
        text, pid = "", engine_pid(dray)
        chunks = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": question}], stream=True, max_tokens=limit
        )
        for chunk in chunks:
            delta = chunk.choices[0].delta
            text += (getattr(delta, "reasoning_content", None) or "") + (delta.content or "")
            if kill and text:
                os.kill(pid, signal.SIGKILL)
                kill = False
        return text

    undisturbed = stream(kill=False, limit=600)
    assert stream(kill=True, limit=601) == undisturbed


def test_stuck_engine_is_replaced(dray: Dray, http: httpx.Client, paused_engine: int) -> None:
    thread, texts = answered(http, new_question())
    thread.join(90)
    assert "42" in texts[0]
    assert not psutil.pid_exists(paused_engine)


def test_redis_killed_and_back(dray: Dray, http: httpx.Client) -> None:
    question = new_question()
    ask(http, question)
    killed = redis_process(dray)
    os.kill(killed.pid, signal.SIGKILL)
    for _ in range(3):
        assert "42" in ask(http, question).json()["choices"][0]["message"]["content"]
    wait_for(lambda: ask(http, question).headers["x-dray-cache"] == "hit")
    assert redis_process(dray).pid != killed.pid


def test_a_paused_redis_delays_nothing_for_long(dray: Dray, http: httpx.Client) -> None:
    server = redis_process(dray)
    server.suspend()
    try:
        assert "42" in ask(http, new_question()).json()["choices"][0]["message"]["content"]
    finally:
        server.resume()
    question = new_question()
    wait_for(lambda: ask(http, question).headers["x-dray-cache"] == "hit")
