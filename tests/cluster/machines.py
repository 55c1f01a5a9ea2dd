"""Dray on several machines, each with its own folders: a head, and the machines that have joined it."""

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
    """A host that runs `dray`. extra: environment variables beside those of its folders and sizes."""

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
        """The command line that runs `dray` with these arguments on this machine, on one CPU."""
        cpu = str(int(self.host.name[-1]) % 2)
        return self.host.command(["taskset", "-c", cpu, sys.executable, "-m", "cluster.cli", *arguments])

    def start(self, *arguments: str) -> None:
        """Starts `dray` on this machine, and does not wait for it."""
        with (self.folder / "out").open("a") as out:
            self.launcher = subprocess.Popen(
                self.command(*arguments),
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def stop(self) -> int:
        """Asks the started `dray` to end, waits, and returns its exit code."""
        assert self.launcher is not None
        self.launcher.terminate()
        return self.launcher.wait(90)

    def run(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Runs `dray` on this machine and waits until it ends. extra: environment variables."""
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
        """The record that its launcher has written."""
        record: dict[str, Any] = json.loads((self.folder / "s" / "dray.json").read_text())
        return record

    @property
    def ready(self) -> bool:
        """Whether its `dray` is up or has joined. Fails the test if it has ended."""
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
        """Process ids of the engines on this machine."""
        return [pid for pid in self.host.pids if "deployments.engine.core" in _command_line(pid)]


@contextmanager
def machines(count: int, **extra: str) -> Iterator[list[Machine]]:
    """Machines on which nothing runs yet. extra: environment variables of each."""
    with hosts(count) as created:
        machines = [Machine(host, Path(tempfile.mkdtemp(prefix="dray-t-")), dict(extra)) for host in created]
        try:
            yield machines
        finally:
            for machine in machines:
                machine.host.kill()
                if machine.launcher is not None:
                    machine.launcher.wait()
                shutil.rmtree(machine.folder, ignore_errors=True)


@dataclass
class Cluster:
    """A head and the machines that have joined it. key: the API key of a team."""

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
        """Sends an uncached request for the first tokens of an answer."""
        body = _body("What is 12 times 13?", stream=False) | {"max_tokens": tokens, "ignore_eos": True}
        return httpx.post(self._chat_url, json=body, headers=self.headers, timeout=90)

    def pieces(self, question: str, idempotency_key: str = "", *, cached: bool = False) -> Iterator[str]:
        """Streams an answer and yields its pieces, thinking and text, as they arrive.

        cached: whether the answer may come from the cache; a request with an idempotency key always may.
        """
        body = _body(question, stream=True)
        headers = self.headers
        if idempotency_key or cached:
            headers = {"Authorization": f"Bearer {self.key}"}
            headers |= {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        with httpx.stream("POST", self._chat_url, json=body, headers=headers, timeout=90) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    assert "error" not in chunk, chunk
                    for choice in chunk["choices"]:
                        yield (choice["delta"].get("reasoning_content") or "") + (choice["delta"].get("content") or "")

    @property
    def _chat_url(self) -> str:
        return f"{self.url}/v1/chat/completions"

    def join(self, machine: Machine) -> None:
        """Makes a machine join, and waits until it has joined."""
        machine.extra["RAY_AUTH_TOKEN"] = self.head.token
        machine.start("join", f"{self.head.host.address}:6379")
        wait_for(lambda: machine.ready, 60)


@contextmanager
def running_cluster(count: int, **extra: str) -> Iterator[Cluster]:
    """A head that is ready, and `count` - 1 machines that have joined it. extra: environment variables of each."""
    with machines(count, **extra) as [head, *others]:
        head.start("up", "--head")
        wait_for(lambda: head.ready, 90)
        cluster = Cluster(head, others)
        for machine in others:
            cluster.join(machine)
        assert head.run("teams", "add", "testers").returncode == 0
        cluster.key = json.loads(head.run("keys", "create", "testers", "--json").stdout)["key"]
        wait_for(lambda: cluster.ask().status_code == 200, 30)
        yield cluster


def _body(question: str, *, stream: bool) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": question}], "stream": stream}


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""
