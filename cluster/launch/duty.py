"""Recurring work of the launcher that may fail and must not end the service: it is reported, and tried again later."""

import logging
import time
from collections.abc import Callable

from cluster.launch.serving import one_line

log = logging.getLogger("dray.launch")

RETRY_S = 5.0
"""Pause after a failure."""


class Duty:
    """Work that is done at regular intervals. While it fails, `problem` says so, and tries are `RETRY_S` apart."""

    def __init__(
        self,
        failing: str,
        work: Callable[[], None],
        *,
        interval_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """failing: what the user should know while the work fails; the error follows it. interval_s: pause after
        success."""
        self.problem = ""
        self._failing = failing
        self._work = work
        self._interval_s = interval_s
        self._clock = clock
        self._next = clock()

    def run(self) -> None:
        """Does the work if it is due. Logs a failure when it begins, when its reason changes, and when it is over."""
        if self._clock() < self._next:
            return
        try:
            self._work()
        except Exception as error:  # whatever the reason, what serves must continue to serve
            self._next = self._clock() + RETRY_S
            problem = f"{self._failing}: {one_line(error)}; retrying every {RETRY_S:.0f} s"
            if problem != self.problem:
                log.warning("%s", problem)
                log.debug("the error in full", exc_info=error)
            self.problem = problem
            return
        self._next = self._clock() + self._interval_s
        if self.problem:
            log.warning("resolved: %s", self.problem)
        self.problem = ""
