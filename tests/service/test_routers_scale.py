"""Routers come with the streams and go with them, and no stream is lost by it."""

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cluster.ports import free_port
from tests.conftest import MODEL, Dray, wait_for
from tests.service.test_single_flight import routers

pytestmark = pytest.mark.slow


@pytest.fixture
def growing() -> Iterator[Dray]:
    """One router, and two where there are more than four streams each."""
    dray = Dray(Path(tempfile.mkdtemp(prefix="dray-t-")), free_port())
    settings = {"MAX_REPLICAS": "2", "TARGET_STREAMS": "4", "DOWNSCALE_DELAY_S": "3"}
    scaling = {f"DRAY_ROUTER__{name}": value for name, value in settings.items()}
    started = dray.run("up", "--detach", timeout=120, DRAY_MODEL__CORES_PER_REPLICA="1", **scaling)
    assert started.returncode == 0, started.stdout + started.stderr
    yield dray
    stopped = dray.run("down")
    shutil.rmtree(dray.folder, ignore_errors=True)
    assert stopped.returncode == 0, stopped.stderr


@pytest.mark.timeout(300)
def test_routers_come_and_go_with_the_streams(growing: Dray) -> None:
    over = threading.Event()
    ends: list[str] = []

    def lane() -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "What is 345 times 678?"}],
            "stream": True,
            "max_tokens": 400,
            "ignore_eos": True,
        }
        while not over.is_set():
            headers = {"Cache-Control": "no-store, no-cache"}
            url = f"{growing.url}/chat/completions"
            with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as given:
                ends.append([line for line in given.iter_lines() if line][-1])

    lanes = [threading.Thread(target=lane) for _ in range(16)]
    for one in lanes:
        one.start()
    try:
        wait_for(lambda: len(routers(growing)) == 2, 60)
        so_far = len(ends)
        wait_for(lambda: len(ends) > so_far + 50, 60)
    finally:
        over.set()
        for one in lanes:
            one.join()
    wait_for(lambda: len(routers(growing)) == 1, 90)
    assert httpx.get(f"{growing.root}/health/ready").status_code == 200
    assert set(ends) == {"data: [DONE]"}
