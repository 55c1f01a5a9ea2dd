"""Free TCP ports of this machine."""

import random
import socket
from contextlib import suppress

_CANDIDATES = range(30_000, 32_000)


def free_port() -> int:
    """A random TCP port on which nothing listens, at any address.

    The port is below the kernel's range for client ports, where another connection could take it before its use.
    """
    while True:
        port = random.choice(_CANDIDATES)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port
