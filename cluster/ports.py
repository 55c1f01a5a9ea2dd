"""TCP ports that are free on this machine."""

import random
import socket
from contextlib import suppress

_CANDIDATES = range(30_000, 32_000)


def free_port() -> int:
    """A TCP port on which nothing listens, on any address.

    Drawn from below the range from which the kernel gives ports to clients: there, another connection could take it
    before it is used.
    """
    while True:
        port = random.choice(_CANDIDATES)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port
