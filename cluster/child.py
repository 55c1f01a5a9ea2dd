"""Child processes of a launcher that must not outlive it."""

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def dies_with_parent(how: signal.Signals) -> Callable[[], None]:
    """What a child does before exec (`preexec_fn`): it gets this signal when its parent dies, however that dies.

    A group of its own keeps a terminal's Ctrl-C away from it: the launcher ends it in its own time.
    """

    def begin() -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, how)
        os.setpgrp()

    return begin
