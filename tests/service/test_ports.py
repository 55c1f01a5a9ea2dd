"""What a running Dray shows to other machines and to other users of this one."""

import fnmatch
import re
import stat
from ipaddress import ip_address
from pathlib import Path

import httpx
import psutil

from cluster.launch.haproxy import addresses_of
from cluster.launch.ray_node import _TOKEN_FILE
from tests.conftest import Dray

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"


def listening(dray: Dray) -> list[tuple[str, str, int]]:
    """Process, address and port of each TCP socket that it listens on."""
    names = {process.pid: process.name() for process in dray.processes("")}
    sockets = psutil.net_connections("tcp")
    return [
        (names[socket.pid], socket.laddr.ip, socket.laddr.port)
        for socket in sockets
        if socket.pid in names and socket.status == "LISTEN" and socket.laddr
    ]


def is_loopback(address: str) -> bool:
    parsed = ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def test_only_this_machine_can_connect(dray: Dray) -> None:
    sockets = listening(dray)
    listens = {address for process, address, port in sockets if (process, port) == ("haproxy", dray.port)}
    assert listens == {*addresses_of("127.0.0.1")}
    for address in listens:
        host = f"[{address}]" if ":" in address else address
        assert httpx.get(f"http://{host}:{dray.port}/v1/models").status_code == 200
    assert [socket for socket in sockets if not is_loopback(socket[1])] == []


def test_every_process_that_listens_is_in_the_table(dray: Dray) -> None:
    table = SECURITY.read_text().split("## Listening ports")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \|.*\|.*\|.*\|$", table, flags=re.MULTILINE)
    patterns = [pattern.removesuffix(" (the launcher)") for row in rows for pattern in re.split(r", | or ", row)]
    assert "haproxy" in patterns and "*" not in patterns
    unknown = {name for name, _, _ in listening(dray) if not any(fnmatch.fnmatch(name, p) for p in patterns)}
    assert not unknown


def test_no_command_line_shows_a_secret(dray: Dray) -> None:
    token = (dray.folder / "s" / _TOKEN_FILE).read_text()
    lines = [" ".join(process.cmdline()) for process in psutil.process_iter()]
    assert any("gcs_server" in line for line in lines)
    assert not [line for line in lines if token in line or re.search(r"redis[-_.]password=(?!redis)\S", line)]


def test_other_users_reach_no_socket_and_no_log(dray: Dray) -> None:
    assert stat.S_IMODE((dray.folder / "s").stat().st_mode) == 0o700
    [admin] = (dray.folder / "s" / "h").rglob("admin.sock")
    assert stat.S_IMODE(admin.stat().st_mode) == 0o600
