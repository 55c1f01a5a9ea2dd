"""Each part of Dray hangs, as a process that is stopped does: it is replaced, or the service goes on without it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import psutil
import pytest

from cluster.cores import held_cores
from cluster.liveness import START_S
from tests.conftest import MODEL, Dray, started_dray, wait_for
from tests.service.test_cache import new_question

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
PAGE = "ServeReplica:page"

REPLACED = {
    "router": "ServeReplica:dray:router",
    "engine": "deployments.engine.core",
    "engine replica": "ServeReplica:engine",
    "HAProxy": "bin/haproxy",
}
"""Parts without which nothing is answered, by the text of their command lines."""
SPARED = {
    "Redis of the answers": "/s/redis",
    "Serve's controller": "ServeController",
    "Ray's GCS": "gcs_server",
    "raylet": "raylet/raylet",
}
"""Parts that a request does not need."""
REPLACED_S = 60
HANG_S = 10


@pytest.fixture(scope="module")
def dray() -> Iterator[Dray]:
    """With the chat page, the default patience for engines, and a short one for Redis."""
    settings = {"DRAY_MODEL__STALL_TIMEOUT_S": "60", "DRAY_CACHE__TIMEOUT_S": "0.25", "DRAY_PAGE": "true"}
    with started_dray(settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def pair() -> Iterator[Dray]:
    """With two routers, and two engine replicas of one core each."""
    settings = {"DRAY_MODEL__REPLICAS": "2", "DRAY_MODEL__CORES_PER_REPLICA": "1", "DRAY_ROUTER__REPLICAS": "2"}
    with started_dray(settings=settings) as running:
        yield running


def parts(dray: Dray, text: str) -> list[psutil.Process]:
    """The processes of a part. Redis shows its folder only as its working directory."""
    if not text.startswith("/"):
        return dray.processes(text)
    return [process for process in dray.processes("server") if process.cwd().endswith(text)]


def status_of(client: httpx.Client) -> int:
    messages = [{"role": "user", "content": new_question()}]
    return client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages}).status_code


def status_or_none(client: httpx.Client) -> int | None:
    """None where the connection ends without an answer."""
    try:
        return status_of(client)
    except httpx.TransportError:
        return None


def answers(dray: Dray) -> bool:
    """Whether a new question is answered right now."""
    try:
        with httpx.Client(base_url=dray.root, timeout=5) as client:
            return status_of(client) == 200
    except httpx.TransportError:
        return False


def shows_page(dray: Dray) -> bool:
    """Whether the chat page is there right now."""
    try:
        return httpx.get(f"{dray.root}/chat", timeout=5, follow_redirects=True).status_code == 200
    except httpx.TransportError:
        return False


def starting(dray: Dray, text: str) -> list[psutil.Process]:
    """Processes of a part that have shown no life yet."""
    signs = {int(file.stem.partition("-")[0]) for file in (dray.folder / "s/metrics").glob("*.alive")}
    return [process for process in parts(dray, text) if process.pid not in signs]


@contextmanager
def hanging(dray: Dray, text: str) -> Iterator[list[psutil.Process]]:
    """Stops all processes of a part of a Dray that answers, and lets those that are left go on afterwards."""
    wait_for(lambda: answers(dray), 120)
    hung = parts(dray, text)
    assert hung
    for process in hung:
        process.suspend()
    try:
        yield hung
    finally:
        for process in hung:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@pytest.mark.parametrize("text", REPLACED.values(), ids=list(REPLACED))
def test_a_part_that_hangs_is_replaced(dray: Dray, text: str) -> None:
    with hanging(dray, text) as hung:
        started = time.monotonic()
        wait_for(lambda: answers(dray), REPLACED_S)
        print(f"{text}: answers after {time.monotonic() - started:.1f} s")
        wait_for(lambda: not any(process.is_running() for process in hung), REPLACED_S)


def test_a_page_that_hangs_is_replaced(dray: Dray) -> None:
    pytest.importorskip("gradio", reason="the chat page needs the extra `page`")
    wait_for(lambda: shows_page(dray), 120)
    [page] = parts(dray, PAGE)
    page.suspend()
    started = time.monotonic()
    wait_for(lambda: not page.is_running(), REPLACED_S)
    print(f"killed after {time.monotonic() - started:.1f} s")
    wait_for(lambda: shows_page(dray), REPLACED_S)
    print(f"there again after {time.monotonic() - started:.1f} s")


def test_a_router_that_hangs_at_its_start_is_replaced(dray: Dray) -> None:
    wait_for(lambda: answers(dray), 120)
    for router in parts(dray, REPLACED["router"]):
        router.kill()
        router.wait(REPLACED_S)
    hung = wait_for(lambda: starting(dray, REPLACED["router"]), REPLACED_S)[0]
    hung.suspend()
    assert hung in starting(dray, REPLACED["router"])
    wait_for(lambda: not hung.is_running(), START_S + REPLACED_S)
    wait_for(lambda: answers(dray), REPLACED_S)


@pytest.mark.parametrize("text", ["ServeController", "HAProxyManager", "ProxyActor"])
def test_a_part_of_serve_that_hangs_is_replaced(dray: Dray, text: str) -> None:
    with hanging(dray, text) as hung:
        started = time.monotonic()
        wait_for(lambda: not any(process.is_running() for process in hung), REPLACED_S)
        wait_for(lambda: parts(dray, text), REPLACED_S)
        print(f"{text}: replaced after {time.monotonic() - started:.1f} s")
    wait_for(lambda: dray.run("status").returncode == 0, 60)
    # What it replaces itself is replaced again.
    for haproxy in dray.processes("bin/haproxy"):
        haproxy.kill()
    wait_for(lambda: answers(dray), REPLACED_S)


@pytest.mark.parametrize("text", ["ServeReplica:engine", "ServeReplica:dray:router"], ids=["engine replica", "router"])
def test_requests_go_on_beside_a_replica_that_hangs_until_it_is_replaced(pair: Dray, text: str) -> None:
    wait_for(lambda: answers(pair) and len(parts(pair, text)) == 2, 120)
    hung = parts(pair, text)[0]
    hung.suspend()
    started, slowest, again = time.monotonic(), 0.0, 0
    with httpx.Client(base_url=pair.root, timeout=REPLACED_S) as client:
        while hung.is_running() or len(parts(pair, text)) < 2:
            assert time.monotonic() - started < REPLACED_S
            asked = time.monotonic()
            while (status := status_or_none(client)) != 200:
                # What the hung router had accepted is lost; clients send it again.
                assert "router" in text and status is None
                again += 1
            slowest = max(slowest, time.monotonic() - asked)
    print(f"{text}: replaced after {time.monotonic() - started:.1f} s, slowest {slowest:.1f} s, sent again {again}")
    replicas = {process.pid for process in parts(pair, "ServeReplica:engine")}
    wait_for(lambda: {core.pid for core in held_cores(pair.folder / "c")} == replicas)


@pytest.mark.parametrize("text", SPARED.values(), ids=list(SPARED))
def test_requests_do_not_wait_for_a_part_that_they_do_not_need(dray: Dray, text: str) -> None:
    with hanging(dray, text):
        end, count = time.monotonic() + HANG_S, 0
        while time.monotonic() < end:
            assert answers(dray)
            count += 1
        assert count > 2
    wait_for(lambda: dray.run("status").returncode == 0, 60)
    wait_for(lambda: answers(dray), 60)


@pytest.mark.parametrize("folder", ["/s/redis", "/teams"])
def test_a_redis_that_hangs_for_good_is_started_again(dray: Dray, folder: str) -> None:
    with hanging(dray, folder) as [hung]:
        started = time.monotonic()
        while hung.is_running() or not parts(dray, folder):
            assert time.monotonic() - started < REPLACED_S
            assert answers(dray)
        print(f"{folder}: started again after {time.monotonic() - started:.1f} s")
    wait_for(lambda: dray.run("status").returncode == 0, 60)


@pytest.mark.parametrize("text", ["gcs_server", "raylet/raylet"])
def test_dray_starts_again_when_a_part_of_ray_hangs_for_good(another: Dray, text: str) -> None:
    started = another.run("up", "--detach")
    assert started.returncode == 0, started.stderr
    with hanging(another, text) as [hung]:
        began = time.monotonic()
        wait_for(lambda: not hung.is_running(), 120)
        print(f"{text}: killed after {time.monotonic() - began:.1f} s")
        wait_for(lambda: answers(another), 200)
        print(f"{text}: answers again after {time.monotonic() - began:.1f} s")
    log = (another.folder / "s/dray.log").read_text()
    assert f"(process {hung.pid}) hangs" in log and "Dray starts again" in log
    assert another.run("status").returncode == 0


def test_haproxy_that_dies_is_replaced_and_nobody_is_told_that_there_is_no_such_page(dray: Dray) -> None:
    wait_for(lambda: answers(dray), 120)
    [haproxy] = dray.processes("bin/haproxy")
    haproxy.kill()
    started, statuses = time.monotonic(), set()
    with httpx.Client(base_url=dray.root, timeout=5) as client:
        while time.monotonic() - started < REPLACED_S:
            try:
                status = status_of(client)
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            statuses.add(status)
            if status == 200:
                break
    print(f"answers after {time.monotonic() - started:.1f} s, before that {sorted(statuses)}")
    assert 200 in statuses and statuses <= {200, 503}
