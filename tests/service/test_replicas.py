"""Several routers and engine replicas: which replica gets a request, and how streams survive the loss of either."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.conftest import MODEL, Dray, started_dray, wait_for
from tests.service.test_single_flight import routers

QUESTION = "What is 345 times 678?"
SYSTEM = "You are a careful helper of a school's arithmetic class. " * 12


@pytest.fixture(scope="module")
def pair() -> Iterator[Dray]:
    """A Dray with two routers, and two engine replicas of one core each."""
    settings = {"DRAY_MODEL__REPLICAS": "2", "DRAY_MODEL__CORES_PER_REPLICA": "1", "DRAY_ROUTER__REPLICAS": "2"}
    with started_dray(settings=settings) as dray:
        yield dray


@pytest.fixture(scope="module")
def pair_client(pair: Dray) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=pair.url, api_key="none", max_retries=2, timeout=120) as client:
        yield client


def engines(dray: Dray) -> list[psutil.Process]:
    return dray.processes("deployments.engine.core")


def stream(client: openai.OpenAI, **more: Any) -> Iterator[str]:
    """The deltas of an uncached answer, thinking and text."""
    chunks = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        stream=True,
        extra_headers={"Cache-Control": "no-store, no-cache"},
        **more,
    )
    for chunk in chunks:
        for choice in chunk.choices:
            yield (getattr(choice.delta, "reasoning_content", None) or "") + (choice.delta.content or "")


def test_a_conversation_returns_to_the_replica_that_has_cached_it(pair: Dray) -> None:
    def converse(name: str) -> list[int]:
        """The number of cached tokens of each turn."""
        messages: list[dict[str, str]] = [{"role": "system", "content": f"{name}. {SYSTEM}"}]
        cached = []
        for number in range(4):
            messages.append({"role": "user", "content": f"What is {number} times 12?"})
            body = {"model": MODEL, "messages": messages, "max_tokens": 16, "temperature": 0.5}
            # A new connection for each turn: any router may get it.
            answer = httpx.post(f"{pair.url}/chat/completions", json=body, timeout=60).json()
            cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
            messages.append({"role": "assistant", "content": "It is what it is."})
        return cached

    first, later = [], []
    for number in range(10):
        cached = converse(f"Class {number}")
        first.append(cached[0])
        later += cached[1:]
    assert max(first) < 64
    # By chance it would be 21. A turn may arrive before Redis has the record of the previous turn.
    assert sum(tokens > 100 for tokens in later) >= 28, later


def test_streams_survive_the_death_of_engines(pair: Dray, pair_client: openai.OpenAI) -> None:
    check_streams_survive(pair, pair_client, kills=5, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_streams_survive_two_hundred_kills(pair: Dray, pair_client: openai.OpenAI) -> None:
    check_streams_survive(pair, pair_client, kills=200, seed=2)


def check_streams_survive(dray: Dray, client: openai.OpenAI, kills: int, seed: int) -> None:
    """Six clients stream one answer after another, while engines or replicas are killed at random."""
    undisturbed = "".join(stream(client))
    over = threading.Event()
    answers: list[str] = []

    def ask_until_over() -> None:
        while not over.is_set():
            try:
                answers.append("".join(stream(client)))
            except openai.OpenAIError as error:
                answers.append(repr(error))

    threads = [threading.Thread(target=ask_until_over) for _ in range(6)]
    for thread in threads:
        thread.start()
    killed = 0
    try:
        chance = random.Random(seed)
        while killed < kills:
            wait_for(lambda: len(engines(dray)) == 2, 90)
            time.sleep(chance.uniform(0, 1))
            for engine in engines(dray)[:1] if chance.random() < 0.5 else engines(dray)[-1:]:
                kill(engine, replica=chance.random() < 0.25)
                killed += 1
    finally:
        over.set()
        for thread in threads:
            thread.join(120)
    assert len(answers) > kills
    assert Counter(answers) == {undisturbed: len(answers)}


def kill(engine: psutil.Process, *, replica: bool) -> None:
    """Kills the engine. replica: kills the replica that started it instead."""
    try:
        parent = engine.parent()
        (parent if replica and parent else engine).kill()
    except psutil.NoSuchProcess:
        return


def test_a_killed_router_fails_no_later_request(pair: Dray, pair_client: openai.OpenAI) -> None:
    running_routers = routers(pair)
    assert len(running_routers) == 2
    os.kill(running_routers[0].pid, signal.SIGKILL)
    for _ in range(20):
        assert "".join(stream(pair_client, max_tokens=4))
