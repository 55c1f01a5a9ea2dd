"""Several routers and several engine replicas: where requests go, and how streams outlive what serves them."""

import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from cluster.launch.preflight import free_port
from tests.conftest import MODEL, Dray, wait_for
from tests.service.test_single_flight import routers

QUESTION = "What is 345 times 678?"
SYSTEM = "You are a careful helper of a school's arithmetic class. " * 12


@pytest.fixture(scope="module")
def pair() -> Iterator[Dray]:
    """Two routers, two engine replicas of one core."""
    dray = Dray(Path(tempfile.mkdtemp(prefix="dray-t-")), free_port())
    two = {"DRAY_MODEL__REPLICAS": "2", "DRAY_MODEL__CORES_PER_REPLICA": "1", "DRAY_ROUTER__REPLICAS": "2"}
    started = dray.run("up", "--detach", timeout=120, **two)
    assert started.returncode == 0, started.stdout + started.stderr
    yield dray
    stopped = dray.run("down")
    shutil.rmtree(dray.folder, ignore_errors=True)
    assert stopped.returncode == 0, stopped.stderr


@pytest.fixture(scope="module")
def asker(pair: Dray) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=pair.url, api_key="none", max_retries=2, timeout=120) as made:
        yield made


def engines(dray: Dray) -> list[psutil.Process]:
    return dray.processes("deployments.engine.core")


def stream(client: openai.OpenAI, **more: Any) -> Iterator[str]:
    """Pieces of an uncached answer, thinking and text."""
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


def test_a_conversation_goes_back_to_where_it_is_cached(pair: Dray) -> None:
    def talk(name: str) -> list[int]:
        turns: list[dict[str, str]] = [{"role": "system", "content": f"{name}. {SYSTEM}"}]
        cached = []
        for number in range(4):
            turns.append({"role": "user", "content": f"What is {number} times 12?"})
            body = {"model": MODEL, "messages": turns, "max_tokens": 16, "temperature": 0.5}
            # Each turn on a connection of its own: any router may get it.
            given = httpx.post(f"{pair.url}/chat/completions", json=body, timeout=60).json()
            cached.append(given["usage"]["prompt_tokens_details"]["cached_tokens"])
            turns.append({"role": "assistant", "content": "It is what it is."})
        return cached

    first, later = [], []
    for number in range(10):
        cached = talk(f"Class {number}")
        first.append(cached[0])
        later += cached[1:]
    assert max(first) < 64
    # By chance it would be 21. A turn may come before Redis has been told of the one before.
    assert sum(tokens > 100 for tokens in later) >= 28, later


def test_streams_outlive_engines_at_any_moment(pair: Dray, asker: openai.OpenAI) -> None:
    outlive(pair, asker, kills=5, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_streams_outlive_two_hundred_kills(pair: Dray, asker: openai.OpenAI) -> None:
    outlive(pair, asker, kills=200, seed=2)


def outlive(dray: Dray, client: openai.OpenAI, kills: int, seed: int) -> None:
    """Streams one after the other in several lanes, while engines, or replicas with theirs, are killed at random."""
    undisturbed = "".join(stream(client))
    over = threading.Event()
    told: list[str] = []

    def lane() -> None:
        while not over.is_set():
            try:
                told.append("".join(stream(client)))
            except openai.OpenAIError as error:
                told.append(repr(error))

    threads = [threading.Thread(target=lane) for _ in range(6)]
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
    assert len(told) > kills
    assert Counter(told) == {undisturbed: len(told)}


def kill(engine: psutil.Process, *, replica: bool) -> None:
    try:
        parent = engine.parent()
        (parent if replica and parent else engine).kill()
    except psutil.NoSuchProcess:
        return


def test_a_killed_router_costs_its_streams_and_no_later_request(pair: Dray, asker: openai.OpenAI) -> None:
    mine = routers(pair)
    assert len(mine) == 2
    os.kill(mine[0].pid, signal.SIGKILL)
    for _ in range(20):
        assert "".join(stream(asker, max_tokens=4))
