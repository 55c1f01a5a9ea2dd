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


def ports(text: str, dray: Dray) -> range:
    """The ports that a cell of the table stands for. Raises KeyError for other words."""
    block = range(20_000, 30_000)
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return {
        "`port` (8000)": range(dray.port, dray.port + 1),
        "one in the block 20000 to 29999, for each router and the chat page": block,
        "one in the same block": block,
        "chosen by the kernel": range(first, last + 1),
    }[text]


ADDRESSES = {"127.0.0.1": {"127.0.0.1"}, "`host`; for 127.0.0.1 also ::1": {"127.0.0.1", "::1"}}


def test_the_table_has_each_socket_and_no_other(dray: Dray) -> None:
    table = SECURITY.read_text().split("## Listening ports")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|.*\|$", table, flags=re.MULTILINE)[1:]
    unknown = set(listening(dray))
    assert len(rows) > 5 and unknown
    for processes, port, address in rows:
        if port.startswith("with `--head`"):
            continue
        # What the cell says before the case of --head.
        port, address = (cell.split("; with `--head`")[0] for cell in (port, address))
        patterns = re.split(r", | or ", processes.replace(" (the launcher)", ""))
        found = {
            socket
            for socket in listening(dray)
            # Ray adds the name of the deployment to that of the process.
            if any(fnmatch.fnmatch(socket[0], name) for pattern in patterns for name in (pattern, f"{pattern}:*"))
            and socket[1].removeprefix("::ffff:") in ADDRESSES[address]
            and socket[2] in ports(port, dray)
        }
        assert found, (processes, port, address, listening(dray))
        unknown -= found
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
