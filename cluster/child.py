"""Child processes that must not outlive their launcher."""

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def dies_with_parent(death_signal: signal.Signals) -> Callable[[], None]:
    """A `preexec_fn`: the kernel sends the child this signal when its parent dies, for whatever reason.

    The child also gets its own process group, so that Ctrl-C in a terminal does not reach it: the launcher stops it.
    """

    def prepare() -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal)
        os.setpgrp()

    return prepare
