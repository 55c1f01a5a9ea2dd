"""Machines for tests: network namespaces on one bridge, each with an address of its own."""

import os
import random
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


def can_make_hosts() -> bool:
    """Whether this process may create network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    probe = f"dray-probe-{secrets.token_hex(4)}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return False
    _ip("netns", "delete", probe)
    return True


@dataclass(frozen=True)
class Host:
    """A machine: its network namespace, and its address in the network of the test."""

    name: str
    address: str

    def command(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` on this machine."""
        return ["ip", "netns", "exec", self.name, *command]

    def unplug(self) -> None:
        """Disconnects this machine from the others."""
        _ip("link", "set", self.name, "down")

    def plug(self) -> None:
        """Connects this machine again."""
        _ip("link", "set", self.name, "up")

    @property
    def pids(self) -> list[int]:
        """Ids of all processes on this machine."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def kill(self) -> None:
        """Ends all processes on this machine as a power cut would: the others get no message."""
        self.unplug()
        for pid in self.pids:
            subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Creates `count` machines that reach each other and can be reached from this one."""
    created: list[Host] = []
    bridge, subnet = _new_bridge()
    try:
        _ip("address", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for number in range(count):
            host = Host(f"{bridge}-h{number}", f"{subnet}.{number + 2}")
            _ip("netns", "add", host.name)
            _ip("link", "add", host.name, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            created.append(host)
            _ip("link", "set", host.name, "master", bridge, "up")
            inside = ("-n", host.name)
            _ip(*inside, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip(*inside, "link", "set", "eth0", "up")
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "route", "add", "default", "via", f"{subnet}.1")
        yield created
    finally:
        for host in created:
            host.kill()
            _ip("netns", "delete", host.name)
        _ip("link", "delete", bridge)


def _new_bridge() -> tuple[str, str]:
    """Creates a bridge with an unused name; returns the name, and the first three numbers of its network's addresses.

    The numbers are drawn at random because the kernel takes a while to remove the links of a deleted namespace. Numbers
    that another test run uses, or that a killed run left behind, are skipped.
    """
    names = _ip("netns", "list") + _ip("link", "show")
    for number in random.sample(range(256), 256):
        bridge = f"dray-{number}"
        if f"{bridge}-h" in names:
            continue
        try:
            # Only one of several processes can create it, so success also reserves the number.
            _ip("link", "add", bridge, "type", "bridge")
        except RuntimeError as error:
            if "File exists" in str(error):
                continue
            raise
        return bridge, f"10.77.{number}"
    raise RuntimeError("all networks 10.77.0.0/24 to 10.77.255.0/24 are in use: delete the dray-* links and namespaces")


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
