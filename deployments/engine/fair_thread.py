"""One thread that several owners share: who has cheap work waits only briefly for the dear work of others."""

import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar

Result = TypeVar("Result")

_PATIENCE = 100.0
"""A piece of work is due after this many times what it is expected to take."""
_UNKNOWN_S = 0.01
"""What the first piece of an owner is expected to take."""
_MEMORY = 0.9
"""After a dear piece, an owner's work is expected to be cheap only by and by."""
_MAX_OWNERS = 4096


class FairThread:
    """Does work of several owners, one piece at a time, and next the piece that is due first.

    So cheap work waits for hardly more than the piece that runs, however much dear work is there; and dear work waits
    for its turn, however much cheap work comes.
    """

    def __init__(self, name: str) -> None:
        """name: of the thread."""
        self._thread = ThreadPoolExecutor(1, name)
        self._lock = Lock()
        self._waiting: list[tuple[float, Hashable, Future[Any], Callable[[], Any]]] = []
        self._expected: dict[Hashable, float] = {}
        """Seconds that a piece of each owner takes; those with work of late are the last."""

    def submit(self, owner: Hashable, work: Callable[[], Result]) -> Future[Result]:
        """Does the work when it is due. Work that is cancelled before costs nobody anything."""
        future: Future[Result] = Future()
        with self._lock:
            self._waiting.append((time.monotonic(), owner, future, work))
        self._thread.submit(self._do_next)
        return future

    def _do_next(self) -> None:
        with self._lock:
            while self._waiting:
                _, owner, future, work = self._waiting.pop(self._first())
                if future.set_running_or_notify_cancel():
                    break
            else:
                return  # the work was cancelled
        started = time.perf_counter()
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - as an executor does, it reaches whoever asks for the result
            future.set_exception(error)
        with self._lock:
            before = _MEMORY * self._expected.pop(owner, 0.0)
            self._expected[owner] = max(time.perf_counter() - started, before)
            if len(self._expected) > _MAX_OWNERS:
                del self._expected[next(iter(self._expected))]

    def _first(self) -> int:
        """The index of the piece that is due first, by what is known now of its owner."""
        expected = self._expected
        due = [since + _PATIENCE * expected.get(owner, _UNKNOWN_S) for since, owner, _, _ in self._waiting]
        return due.index(min(due))
