"""Nothing leaves the machine: every address that any process of a Dray connects or sends to is one of its own."""

import json
import re
import shutil
import signal
import subprocess
from ipaddress import ip_address

import httpx
import psutil
import pytest

from tests.conftest import RABBITS, Dray, wait_for
from tests.service.test_ports import is_loopback, listening

# Each is (system call, address). strace follows every child, so no connection is too short to be seen.
_SENT = re.compile(r'(connect|sendto|sendmsg|sendmmsg)\(.*?(?:inet_addr\("|inet_pton\(AF_INET6, ")([^"]+)"')


def sent_to(trace: str) -> set[str]:
    """The addresses in strace's lines."""
    return {match[2] for match in _SENT.finditer(trace)}


def test_the_trace_is_read_right() -> None:
    trace = (
        '7 connect(5, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("169.254.169.254")}, 16) = -1\n'
        '7 connect(5, {sa_family=AF_INET6, sin6_port=htons(1), inet_pton(AF_INET6, "::1", &x)}\n'
        '7 connect(5, {sa_family=AF_UNIX, sun_path="/s/redis.sock"}, 110) = 0\n'
    )
    assert sent_to(trace) == {"169.254.169.254", "::1"}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_dray_that_starts_works_and_stops_sends_nothing(another: Dray) -> None:
    trace = another.folder / "trace"
    tracer = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace)]
    environment = another.environment | {"DRAY_HOST": "0.0.0.0", "DRAY_PAGE": "true"}
    with subprocess.Popen([*tracer, *another.command("up")], env=environment, cwd=another.folder) as process:
        record = another.folder / "s" / "dray.json"
        wait_for(lambda: record.exists() and json.loads(record.read_text())["stage"] == "ready", 300)
        public = [(name, port) for name, address, port in listening(another) if not is_loopback(address)]
        assert public == [("haproxy", another.port)], "the host is for the service's port only"
        assert another.run("teams", "add", "a").returncode == 0
        key = json.loads(another.run("keys", "create", "a", "--json").stdout)["key"]
        body = {"model": "dray-demo", "messages": [{"role": "user", "content": RABBITS}]}
        headers = {"Authorization": f"Bearer {key}"}
        url = f"{another.url}/chat/completions"
        wait_for(lambda: httpx.post(url, json=body, headers=headers, timeout=100).status_code == 200)
        launcher = psutil.Process(json.loads(record.read_text())["pid"])
        launcher.send_signal(signal.SIGINT)
        process.wait(100)
    addresses = sent_to(trace.read_text())
    assert "127.0.0.1" in addresses
    assert [a for a in addresses if not is_loopback(a) and ip_address(a) != ip_address("0.0.0.0")] == []
