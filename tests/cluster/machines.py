"""Dray over several machines, each with its own folders: a head, and those that have joined it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.cluster.hosts import Host, hosts
from tests.conftest import MODEL, wait_for


@dataclass
class Machine:
    """A host on which `dray` is run. extra: environment beyond its folders."""

    host: Host
    folder: Path
    extra: dict[str, str] = field(default_factory=dict)
    launcher: "subprocess.Popen[str] | None" = None

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DRAY_", "RAY_"))}
        return inherited | {
            "DRAY_STATE_DIR": str(self.folder / "s"),
            "DRAY_LEASE_DIR": str(self.folder / "c"),
            "DRAY_DATA_DIR": str(self.folder / "d"),
            "DRAY_HOST": "0.0.0.0",
            "DRAY_CLUSTER__ADDRESS": self.host.address,
            "DRAY_MODEL__CORES_PER_REPLICA": "1",
            "DRAY_MODEL__KV_CACHE_MB": "64",
            "DRAY_CACHE__MEMORY_MB": "32",
            "DRAY_CACHE__TIMEOUT_S": "2",
            "COLUMNS": "200",
            **self.extra,
        }

    def command(self, *arguments: str) -> list[str]:
        """`dray` there, on one CPU."""
        cpu = str(int(self.host.name[-1]) % 2)
        return self.host.command(["taskset", "-c", cpu, sys.executable, "-m", "cluster.cli", *arguments])

    def start(self, *arguments: str) -> None:
        """Runs `dray` there until it is stopped."""
        self.launcher = subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            stdout=(self.folder / "out").open("a"),
            stderr=subprocess.STDOUT,
            text=True,
        )

    def stop(self) -> int:
        """Asks it to end, and waits; gives its exit code."""
        assert self.launcher is not None
        self.launcher.terminate()
        return self.launcher.wait(90)

    def run(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Runs `dray` there to its end."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment | extra,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    @property
    def record(self) -> dict[str, Any]:
        """What its launcher has written of itself."""
        found: dict[str, Any] = json.loads((self.folder / "s" / "dray.json").read_text())
        return found

    @property
    def ready(self) -> bool:
        """Whether it is up, or has joined. Fails where it has ended."""
        assert self.launcher is not None
        assert self.launcher.poll() is None, (self.folder / "out").read_text()
        try:
            return bool(self.record["stage"] == "ready" and self.record["pid"] == self.launcher.pid)
        except FileNotFoundError:
            return False

    @property
    def token(self) -> str:
        return (self.folder / "d" / "cluster-token").read_text()

    @property
    def engines(self) -> list[int]:
        """Process ids of the engines that run there."""
        return [pid for pid in self.host.pids if "deployments.engine.core" in _command_line(pid)]


@contextmanager
def machines(count: int, **extra: str) -> Iterator[list[Machine]]:
    """So many, on which nothing runs yet."""
    with hosts(count) as there:
        made = [Machine(host, Path(tempfile.mkdtemp(prefix="dray-t-")), dict(extra)) for host in there]
        try:
            yield made
        finally:
            for one in made:
                one.host.kill()
                if one.launcher is not None:
                    one.launcher.wait()
                shutil.rmtree(one.folder, ignore_errors=True)


@dataclass
class Cluster:
    """A head and those that have joined it. key: a team's."""

    head: Machine
    others: list[Machine]
    key: str = ""

    @property
    def url(self) -> str:
        return f"http://{self.head.host.address}:8000"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}", "Cache-Control": "no-store, no-cache"}

    def ask(self, tokens: int = 4) -> httpx.Response:
        """The beginning of an answer, uncached."""
        body = _body("What is 12 times 13?", stream=False) | {"max_tokens": tokens, "ignore_eos": True}
        return httpx.post(self._asked_at, json=body, headers=self.headers, timeout=90)

    def pieces(self, question: str, once: str = "", *, cached: bool = False) -> Iterator[str]:
        """Of an answer, as they come, thinking and text. once: an idempotency key. cached: a known answer will do."""
        body = _body(question, stream=True)
        headers = self.headers
        if once or cached:
            headers = {"Authorization": f"Bearer {self.key}"} | ({"Idempotency-Key": once} if once else {})
        with httpx.stream("POST", self._asked_at, json=body, headers=headers, timeout=90) as given:
            given.raise_for_status()
            for line in given.iter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    assert "error" not in chunk, chunk
                    for choice in chunk["choices"]:
                        yield (choice["delta"].get("reasoning_content") or "") + (choice["delta"].get("content") or "")

    @property
    def _asked_at(self) -> str:
        return f"{self.url}/v1/chat/completions"

    def join(self, one: Machine) -> None:
        """Has a machine join, and waits until it has."""
        one.extra["RAY_AUTH_TOKEN"] = self.head.token
        one.start("join", f"{self.head.host.address}:6379")
        wait_for(lambda: one.ready, 60)


@contextmanager
def cluster(count: int, **extra: str) -> Iterator[Cluster]:
    """A head that is ready, and machines that have joined it."""
    with machines(count, **extra) as [head, *others]:
        head.start("up", "--head")
        wait_for(lambda: head.ready, 90)
        made = Cluster(head, others)
        for one in others:
            made.join(one)
        assert head.run("teams", "add", "testers").returncode == 0
        made.key = json.loads(head.run("keys", "create", "testers", "--json").stdout)["key"]
        wait_for(lambda: made.ask().status_code == 200, 30)
        yield made


def _body(question: str, *, stream: bool) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": question}], "stream": stream}


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""
