"""One real Dray for the whole session: its own ports, folders and locks, so that it runs beside another."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from cluster.models.folder import BUNDLED_FOLDER, ServedModel, open_model
from cluster.ports import free_port
from cluster.redis_server import OwnRedis
from cluster.settings import ModelSettings, default_models_dir

MODEL = "dray-demo"
RABBITS = "一个笼子里有鸡和兔子共35只,脚共94只,问各有多少?"


def pytest_configure() -> None:
    """Lets Ctrl-C reach what the tests start. A shell without job control starts `pytest &` with SIGINT ignored, and
    every child inherits that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(fact: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Looks until the fact holds, and gives it; fails the test when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not (found := fact()):
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.05)
    return found


@contextmanager
def redis_server(memory_mb: int) -> Iterator[OwnRedis]:
    """A Redis server of the test's own."""
    with tempfile.TemporaryDirectory(prefix="dray-r-") as folder:
        own = OwnRedis(Path(folder) / "s", memory_mb)
        own.start()
        yield own
        own.stop()


@dataclass(frozen=True)
class Dray:
    """A Dray of the tests' own: its folder, and how to run the `dray` command on it."""

    folder: Path
    port: int

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DRAY_")}
        return inherited | {
            "DRAY_STATE_DIR": str(self.folder / "s"),
            "DRAY_LEASE_DIR": str(self.folder / "c"),
            "DRAY_DATA_DIR": str(self.folder / "d"),
            "DRAY_PORT": str(self.port),
            "DRAY_MODEL__KV_CACHE_MB": "64",
            "DRAY_MODEL__STALL_TIMEOUT_S": "5",
            "DRAY_CACHE__MEMORY_MB": "32",
            # Started where it is looked at: tests/browser.
            "DRAY_PAGE": "false",
            # The tests keep both cores busy, and a late answer is not what they are about.
            "DRAY_CACHE__TIMEOUT_S": "2",
            "COLUMNS": "200",
        }

    def run(self, *arguments: str, timeout: float = 120, **extra: str) -> subprocess.CompletedProcess[str]:
        """Runs `dray` with these arguments to its end."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment | extra,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=self.folder,
        )

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cluster.cli", *arguments]

    def processes(self, what: str) -> list[psutil.Process]:
        """Those that its launcher has started, itself or by others, and that have this in their command line."""
        launcher = psutil.Process(json.loads((self.folder / "s" / "dray.json").read_text())["pid"])
        found = []
        for one in launcher.children(recursive=True):
            with suppress(psutil.Error):
                if what in " ".join(one.cmdline()):
                    found.append(one)
        return found

    def status(self) -> dict[str, Any]:
        ended = self.run("status", "--json")
        assert ended.returncode == 0, ended.stderr
        report: dict[str, Any] = json.loads(ended.stdout)
        return report


@pytest.fixture
def another() -> Iterator[Dray]:
    """A Dray that is not started: for tests of starting and stopping."""
    folder = Path(tempfile.mkdtemp(prefix="dray-t-"))
    dray = Dray(folder, free_port())
    yield dray
    dray.run("down")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def dray() -> Iterator[Dray]:
    """The running Dray that most tests share, serving the bundled model."""
    folder = Path(tempfile.mkdtemp(prefix="dray-t-"))
    running = Dray(folder, free_port())
    started = running.run("up", "--detach")
    assert started.returncode == 0, started.stdout + started.stderr
    yield running
    stopped = running.run("down")
    shutil.rmtree(folder, ignore_errors=True)
    assert stopped.returncode == 0, stopped.stderr


@pytest.fixture(scope="session")
def client(dray: Dray) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=dray.url, api_key="none", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture(scope="session")
def http(dray: Dray) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=dray.root, timeout=120) as made:
        yield made


@pytest.fixture(scope="session")
def bundled() -> ServedModel:
    assert BUNDLED_FOLDER.is_dir()
    return open_model(ModelSettings(), default_models_dir())
