"""A thread that several owners share."""

import time
from concurrent.futures import Future, wait
from functools import partial
from threading import Event

import pytest

from deployments.engine.fair_thread import FairThread


def blocked(thread: FairThread) -> Event:
    """Keeps the thread busy until the event is set."""
    begun, go = Event(), Event()

    def work() -> None:
        begun.set()
        go.wait(30)

    thread.submit("first", work)
    assert begun.wait(30)
    return go


def test_cheap_work_overtakes_dear_work_of_others() -> None:
    thread, order = FairThread("test"), list[str]()

    def work(owner: str, seconds: float) -> None:
        order.append(owner)
        time.sleep(seconds)

    owners = {"cheap": 0.0, "dear": 0.05, "dearer": 0.1}
    wait([thread.submit(owner, partial(work, owner, seconds)) for owner, seconds in owners.items()], 30)
    order.clear()
    go = blocked(thread)
    pieces = [thread.submit(owner, partial(work, owner, 0.0)) for owner in ("dearer", "dear", "new", "dear", "cheap")]
    go.set()
    wait(pieces, 30)
    assert order == ["cheap", "new", "dear", "dear", "dearer"]


def test_dear_work_has_its_turn_however_much_cheap_work_comes() -> None:
    thread = FairThread("test")
    thread.submit("dear", lambda: time.sleep(0.01)).result(30)
    go = blocked(thread)
    dear, cheap = thread.submit("dear", time.perf_counter), list[Future[None]]()
    go.set()
    began = time.monotonic()
    while not dear.done():
        assert time.monotonic() - began < 20
        cheap += [thread.submit("cheap", lambda: time.sleep(0.0005)) for _ in range(3)]
        cheap[-3].result(30)
    for piece in cheap:
        piece.cancel()


def test_cancelled_work_is_not_done_and_faults_reach_who_asks() -> None:
    thread, done = FairThread("test"), list[str]()
    go = blocked(thread)
    cancelled = thread.submit("a", lambda: done.append("cancelled"))
    last = thread.submit("b", lambda: done.append("last"))
    assert cancelled.cancel()
    go.set()
    wait([last], 30)
    assert done == ["last"]
    with pytest.raises(ZeroDivisionError):
        thread.submit("a", lambda: 1 // 0).result(30)
    assert thread.submit("a", lambda: 3).result(30) == 3
