"""How processes end: children with their launcher, and the first process of a container when it is told to."""

import ctypes
import os
import signal
from collections.abc import Callable
from types import FrameType

_PR_SET_PDEATHSIG = 1


def dies_with_parent(death_signal: signal.Signals) -> Callable[[], None]:
    """A `preexec_fn`: the kernel sends the child this signal when its parent dies, for whatever reason.

    The child also gets its own process group, so that Ctrl-C in a terminal does not reach it: the launcher stops it.
    """

    def prepare() -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal)
        os.setpgrp()

    return prepare


def obey_sigterm() -> None:
    """Makes SIGTERM end this process at once, as it ends any other, if it is the first one of a container.

    The kernel does not deliver a signal without a handler to the first process of a namespace.
    """

    def end(number: int, frame: FrameType | None) -> None:
        os._exit(128 + number)

    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, end)


def ending(status: int) -> str:
    """How a process ended, in words. status: as subprocess has it, negative for a signal."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {-status}"
