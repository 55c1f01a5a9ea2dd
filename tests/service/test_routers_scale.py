"""Routers are added and removed with the number of streams, and no stream is lost."""

import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.conftest import MODEL, Dray, started_dray, wait_for
from tests.service.test_single_flight import routers

pytestmark = pytest.mark.slow


@pytest.fixture
def growing() -> Iterator[Dray]:
    """A Dray with one router, which gets a second router above four streams for each."""
    settings = {
        "DRAY_MODEL__CORES_PER_REPLICA": "1",
        "DRAY_ROUTER__MAX_REPLICAS": "2",
        "DRAY_ROUTER__TARGET_STREAMS": "4",
        "DRAY_ROUTER__DOWNSCALE_DELAY_S": "3",
    }
    with started_dray(settings=settings) as dray:
        yield dray


@pytest.mark.timeout(300)
def test_routers_are_added_and_removed_with_the_streams(growing: Dray) -> None:
    stop = threading.Event()
    ends: list[str] = []

    def stream() -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "What is 345 times 678?"}],
            "stream": True,
            "max_tokens": 400,
            "ignore_eos": True,
        }
        while not stop.is_set():
            headers = {"Cache-Control": "no-store, no-cache"}
            url = f"{growing.url}/chat/completions"
            with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as response:
                ends.append([line for line in response.iter_lines() if line][-1])

    threads = [threading.Thread(target=stream) for _ in range(16)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(routers(growing)) == 2, 60)
        before = len(ends)
        wait_for(lambda: len(ends) > before + 50, 60)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    wait_for(lambda: len(routers(growing)) == 1, 90)
    assert httpx.get(f"{growing.root}/health/ready").status_code == 200
    assert set(ends) == {"data: [DONE]"}
