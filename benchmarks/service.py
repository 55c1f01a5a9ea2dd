"""A separate Dray for benchmarks, with its own port, folders and locks."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from cluster.ports import free_port

PACKAGES = ("ray", "openvino", "starlette", "redis")


@dataclass(frozen=True)
class Service:
    """A Dray that a benchmark starts and stops. settings: DRAY_* variables beyond its folders and port."""

    folder: Path
    port: int
    settings: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "DRAY_STATE_DIR": str(self.folder / "s"),
            "DRAY_LEASE_DIR": str(self.folder / "c"),
            "DRAY_DATA_DIR": str(self.folder / "d"),
            "DRAY_PORT": str(self.port),
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DRAY_")}
        return inherited | own | self.settings

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs `dray` and waits for its end; raises with its output if it fails."""
        ended = subprocess.run(
            [sys.executable, "-m", "cluster.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            raise RuntimeError(f"dray {' '.join(arguments)}: {ended.stderr}")
        return ended

    def up(self) -> float:
        """Starts it; returns the seconds until it was ready."""
        began = time.monotonic()
        self.run("up", "--detach")
        return time.monotonic() - began

    def down(self) -> float:
        """Stops it; returns the seconds that this took."""
        began = time.monotonic()
        self.run("down")
        return time.monotonic() - began

    def status(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return report

    def processes(self) -> list[psutil.Process]:
        """The launcher and all processes that it started."""
        launcher = psutil.Process(json.loads((self.folder / "s" / "dray.json").read_text())["pid"])
        return [launcher, *launcher.children(recursive=True)]


@contextmanager
def prepared(**settings: str) -> Iterator[Service]:
    """Yields a Dray that is not started, and stops it at the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="dray-b-"))
    service = Service(folder, free_port(), settings)
    try:
        yield service
    finally:
        if (folder / "s" / "dray.json").is_file():
            service.down()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running(**settings: str) -> Iterator[Service]:
    """Runs a Dray during the block. settings: DRAY_* variables."""
    with prepared(**settings) as service:
        service.up()
        yield service


def report(title: str, heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown section: the table, and the machine, versions and command that it comes from."""
    cpus = {line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")}
    machine = f"{', '.join(sorted(cpus)) or 'unknown CPU'}, {len(os.sched_getaffinity(0))} CPUs"
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    command = f"python -m benchmarks.{Path(sys.argv[0]).stem} {' '.join(sys.argv[1:])}".strip()
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"## {title}", "", *lines, "", f"`{command}` on {machine}; {versions}.", ""])


def _cpuinfo() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()
