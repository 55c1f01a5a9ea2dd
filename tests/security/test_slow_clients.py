"""Clients that send or read slowly, in front of the real HAProxy with the configuration that Serve renders."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest

from cluster.launch import haproxy
from cluster.ports import free_port
from tests.conftest import wait_for

CONNECTIONS = 20
RECEIVE_S, STALL_S = 1, 2
BACKEND_S = 3 * STALL_S
PATIENCE_S = 5 * (RECEIVE_S + STALL_S)

_RENDER = """
import sys
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
folder, host, port, backend, metrics, stats = *sys.argv[1:3], *map(int, sys.argv[3:])
config = HAProxyConfig(
    http_options=HTTPOptions(host=host, port=port),
    socket_path=f"{folder}/admin.sock", metrics_socket_path=f"{folder}/m.sock",
    server_state_base=folder, server_state_file=f"{folder}/state",
    metrics_port=metrics, stats_port=stats, is_head=True, has_received_routes=True, has_received_servers=True,
)
server = ServerConfig(name="router", host="127.0.0.1", port=backend)
backends = {"dray": BackendConfig(name="http-dray", path_prefix="/", app_name="dray", servers=[server])}
HAProxyApi(config, backends if backend else {}, f"{folder}/haproxy.cfg")._generate_config_file_internal()
"""


class Backend(BaseHTTPRequestHandler):
    """Stands in for a router: answers at once, late, or with more than a client reads."""

    protocol_version = "HTTP/1.1"
    sent = 0
    cut_off = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/dies":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if self.path == "/late":
            time.sleep(BACKEND_S)
        if self.path == "/endless":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
            self.send_response(200)
            self.send_header("Content-Length", str(10**9))
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * 65_536)
                    Backend.sent += 65_536
            except OSError:
                Backend.cut_off.set()
            return
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclass(frozen=True)
class Proxy:
    """The running HAProxy. others: the ports of the listeners that Serve configures besides the service's."""

    folder: Path
    port: int
    others: tuple[int, int]
    process: psutil.Process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, data: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        connection.sendall(data)
        return connection


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    backend = ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    with running_proxy(backend.server_port) as running:
        yield running
    backend.shutdown()
    backend.server_close()


@contextmanager
def running_proxy(backend_port: int, host: str = "127.0.0.1", more: Mapping[str, str] | None = None) -> Iterator[Proxy]:
    """HAProxy in front of the server at this port; 0: in front of none. more: further variables of its environment."""
    port, metrics, stats = free_port(), free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="dray-h-") as name:
        folder = Path(name)
        timeouts = {"RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(STALL_S), haproxy.RECEIVE_TIMEOUT: str(RECEIVE_S)}
        environment = os.environ | timeouts | {"RAY_SERVE_HAPROXY_MAXCONN": str(CONNECTIONS), **(more or {})}
        ports = map(str, (port, backend_port, metrics, stats))
        subprocess.run(
            [sys.executable, "-c", _RENDER, str(folder), host, *ports], check=True, timeout=120, env=environment
        )
        (folder / "state").touch()
        folder.chmod(0o755)  # as Serve makes it
        command = [sys.executable, "-c", "from cluster.launch.haproxy import main; main()"]
        arguments = ["-db", "-f", str(folder / "haproxy.cfg")]
        with subprocess.Popen([*command, *arguments], env=environment, stderr=subprocess.DEVNULL) as process:
            running = Proxy(folder, port, (metrics, stats), psutil.Process(process.pid))
            wait_for(lambda: _status(running) == (200 if backend_port else 503))
            yield running
            process.kill()


def _status(proxy: Proxy) -> int:
    try:
        return httpx.get(proxy.url).status_code
    except httpx.TransportError:
        return 0


def _received(connection: socket.socket) -> bytes:
    """All that the other side sends until it closes the connection."""
    received = b""
    try:
        while part := connection.recv(65_536):
            received += part
    except ConnectionResetError:
        pass
    return received


SLOW = {
    "no request": b"",
    "half of the headers": b"POST / HTTP/1.1\r\nHost: x\r\n",
    "half of the body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    "half of a large body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n" + b" " * 60_000,
}


@pytest.mark.parametrize("begun", SLOW.values(), ids=SLOW)
def test_unfinished_requests_end_and_others_are_served(proxy: Proxy, begun: bytes) -> None:
    connections = [proxy.connect(begun) for _ in range(2 * CONNECTIONS)]
    # Without a limit they would hold every connection for ever.
    assert httpx.get(proxy.url, timeout=PATIENCE_S).text == "ok"
    for connection in connections:
        _received(connection)
        connection.close()


def test_a_late_body_gets_openais_error(proxy: Proxy) -> None:
    with proxy.connect(SLOW["half of the body"]) as connection:
        headers, _, body = _received(connection).partition(b"\r\n\r\n")
    assert headers.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["error"]["code"] == "request_timeout"


def test_a_client_that_waits_for_its_answer_is_kept(proxy: Proxy) -> None:
    assert httpx.get(f"{proxy.url}/late", timeout=PATIENCE_S).text == "ok"


def test_a_client_that_stops_reading_is_cut_off_and_costs_little(proxy: Proxy) -> None:
    Backend.sent = 0
    Backend.cut_off.clear()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # leaves HAProxy's own buffers to be counted
        connection.connect(("127.0.0.1", proxy.port))
        connection.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        assert Backend.cut_off.wait(PATIENCE_S)
    assert Backend.sent < 2_000_000


def test_a_router_that_dies_gets_openais_error(proxy: Proxy) -> None:
    def answer_of_haproxy() -> httpx.Response | None:
        try:
            return httpx.get(f"{proxy.url}/dies")
        except httpx.RemoteProtocolError:
            return None  # where HAProxy's connection to the router was an older one, it only closes the client's

    answer = wait_for(answer_of_haproxy)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "router_ended")


def test_http2_without_tls_is_refused(proxy: Proxy) -> None:
    with proxy.connect(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0") as connection:
        assert _received(connection).startswith(b"HTTP/1.1 400 ")


def test_only_the_service_listens(proxy: Proxy) -> None:
    processes = [proxy.process, *proxy.process.children(recursive=True)]
    sockets = [each for process in processes for each in process.net_connections("inet")]
    listening = {each.laddr for each in sockets if each.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", proxy.port)}, f"of Serve's own listeners {proxy.others} none is left"


def test_the_admin_socket_is_for_this_user_alone(proxy: Proxy) -> None:
    assert stat.S_IMODE(proxy.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((proxy.folder / "admin.sock").stat().st_mode) == 0o600


def test_the_service_listens_where_the_settings_say() -> None:
    config = "global\n  maxconn 5\nfrontend http_frontend\n    bind 127.0.0.1:8000\n"
    for host, expected in (("0.0.0.0", "bind 0.0.0.0:8000"), ("::", "bind ipv6@:::8000"), ("", "bind 127.0.0.1:8000")):
        made = haproxy.changed(config, {haproxy.HOST: host})
        assert re.findall("bind .*", made) == [expected]


def test_localhost_is_both_loopback_addresses() -> None:
    config = "global\n  maxconn 5\nfrontend http_frontend\n    bind *:8000 ssl\n"
    made = haproxy.changed(config, {haproxy.HOST: "127.0.0.1"})
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
            both = ["bind 127.0.0.1:8000 ssl", "bind ipv6@::1:8000 v6only ssl"]
        except OSError:  # a machine without IPv6
            both = ["bind 127.0.0.1:8000 ssl"]
    assert re.findall("bind .*", made) == both


def test_what_it_writes_to_files_is_bounded(proxy: Proxy) -> None:
    soft, hard = proxy.process.rlimit(psutil.RLIMIT_FSIZE)
    assert 0 < soft <= hard <= 10 * 2**20
    ignored = Path(f"/proc/{proxy.process.pid}/status").read_text().partition("SigIgn:")[2].split()[0]
    assert int(ignored, 16) >> (signal.SIGXFSZ - 1) & 1, "else it would die at the limit"


def test_until_a_router_is_known_clients_are_told_to_try_again() -> None:
    with running_proxy(0) as proxy:
        response = httpx.post(f"{proxy.url}/v1/chat/completions", json={})
        assert (response.status_code, response.headers["retry-after"]) == (503, "2")
        assert response.json()["error"]["code"] == "not_ready"
