"""Machines for tests: network namespaces on one bridge, each with an address of its own."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


def can_make_hosts() -> bool:
    """Whether this process may make network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "dray-probe"], capture_output=True, check=False).returncode == 0
    if made:
        _ip("netns", "delete", "dray-probe")
    return made


@dataclass(frozen=True)
class Host:
    """One machine."""

    name: str
    address: str

    def command(self, command: Sequence[str]) -> list[str]:
        """The command, as it is run there."""
        return ["ip", "netns", "exec", self.name, *command]

    def unplug(self) -> None:
        """Parts it from the others."""
        _ip("link", "set", self.name, "down")

    def plug(self) -> None:
        """Puts it back."""
        _ip("link", "set", self.name, "up")

    @property
    def pids(self) -> list[int]:
        """Of all that runs there."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def kill(self) -> None:
        """Ends all that runs there, as a power cut would: nobody hears a word."""
        self.unplug()
        for pid in self.pids:
            subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """So many machines, which reach each other and are reached from here."""
    made: list[Host] = []
    # The kernel takes its time to clear away a namespace: each time there are other names.
    number_of_net = random.randrange(256)
    net, bridge = f"10.77.{number_of_net}", f"dray-{number_of_net}"
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("address", "add", f"{net}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for number in range(count):
            host = Host(f"{bridge}-h{number}", f"{net}.{number + 2}")
            _ip("netns", "add", host.name)
            _ip("link", "add", host.name, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            made.append(host)
            _ip("link", "set", host.name, "master", bridge, "up")
            inside = ("-n", host.name)
            _ip(*inside, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip(*inside, "link", "set", "eth0", "up")
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "route", "add", "default", "via", f"{net}.1")
        yield made
    finally:
        for host in made:
            host.kill()
            _ip("netns", "delete", host.name)
        _ip("link", "delete", bridge)


def _ip(*arguments: str) -> str:
    ended = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {ended.stderr.strip()}")
    return ended.stdout
