"""Fixtures for all tests: a running Dray with its own ports and folders, so that several can run side by side."""

import ast
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import openai
import psutil
import pytest

from cluster.models.folder import ServedModel, open_model
from cluster.ports import free_port
from cluster.redis_server import OwnRedis
from cluster.settings import ModelSettings, default_models_dir
from tests.forked import forked_commands
from tests.judges.judge import JudgedTransport

MODEL = "dray-demo"
RABBITS = "一个笼子里有鸡和兔子共35只,脚共94只,问各有多少?"


def pytest_configure() -> None:
    """Lets Ctrl-C reach the processes that tests start: a shell without job control starts `pytest &` with SIGINT
    ignored, and every child inherits that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    ast.parse = parsing_again(ast.parse)
    # On a busy machine any example can be slow, which is no failure.
    hypothesis.settings.register_profile("dray", deadline=None)
    hypothesis.settings.load_profile("dray")


def parsing_again(parse: Callable[..., ast.Module]) -> Callable[..., Any]:
    """ast.parse, which in Python 3.11 counts the depth of all threads together: it fails if a thread that a test before
    left behind parses too. Hypothesis and inspect call it as well."""

    def parsed_at_last(*args: Any, **options: Any) -> ast.Module:
        for _ in range(9):
            with suppress(SystemError):
                return parse(*args, **options)
        return parse(*args, **options)

    return parsed_at_last


@pytest.fixture(autouse=True)
def propagating_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets caplog see Dray's logs: a router that a test before started in this process has turned that off."""
    monkeypatch.setattr(logging.getLogger("dray"), "propagate", True)


def records_of(caplog: pytest.LogCaptureFixture, name: str) -> list[logging.LogRecord]:
    """What one logger logged. Libraries' threads that a test before left behind may log too."""
    return [record for record in caplog.records if record.name == name]


def parsed(file: Path) -> ast.Module:
    """The module's syntax tree."""
    return ast.parse(file.read_text())


def wait_for(fact: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Polls until the fact is true and returns its value; fails the test if that takes longer."""
    deadline = time.monotonic() + seconds
    while not (value := fact()):
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.05)
    return value


@contextmanager
def redis_server(memory_mb: int) -> Iterator[OwnRedis]:
    """A Redis server for one test or module."""
    with tempfile.TemporaryDirectory(prefix="dray-r-") as folder:
        own = OwnRedis(Path(folder) / "s", memory_mb)
        own.start()
        yield own
        own.stop()


@dataclass(frozen=True)
class Dray:
    """A Dray of the tests: its folder and port, and a way to run `dray` commands on it."""

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
            # Tests count routers, however many cores their machine has.
            "DRAY_ROUTER__REPLICAS": "1",
            # Only tests/browser needs the chat page.
            "DRAY_PAGE": "false",
            # The tests keep all cores busy: a slow Redis must not turn into a cache miss.
            "DRAY_CACHE__TIMEOUT_S": "2",
            "COLUMNS": "200",
        }

    def run(self, *arguments: str, timeout: float = 120, **extra: str) -> subprocess.CompletedProcess[str]:
        """Runs `dray` with these arguments and waits until it ends. extra: environment variables.

        What starts, changes or ends a Dray runs in a new interpreter; the others do so in tests/service/test_guides.py.
        """
        if arguments[0] not in ("up", "deploy", "down"):
            return forked_commands().run(*arguments, env=self.environment | extra, cwd=self.folder, timeout=timeout)
        return subprocess.run(
            self.command(*arguments),
            env=self.environment | extra,
            stdin=subprocess.DEVNULL,  # that of a CI job may never end, and `dray run` reads it
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=self.folder,
        )

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cluster.cli", *arguments]

    def processes(self, text: str) -> list[psutil.Process]:
        """Descendants of its launcher whose command line contains the text."""
        launcher = psutil.Process(json.loads((self.folder / "s" / "dray.json").read_text())["pid"])
        processes = []
        for process in launcher.children(recursive=True):
            with suppress(psutil.Error):
                if text in " ".join(process.cmdline()):
                    processes.append(process)
        return processes

    def status(self) -> dict[str, Any]:
        done = self.run("status", "--json")
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report


def logged(dray: Dray) -> list[str]:
    """All lines that the processes of a Dray have logged."""
    files = [file for file in (dray.folder / "s").rglob("*") if file.suffix in (".log", ".err", ".out")]
    return [line for file in files for line in file.read_text(errors="replace").splitlines()]


@contextmanager
def started_dray(
    *arguments: str, settings: Mapping[str, str] | None = None, folder: Path | None = None
) -> Iterator[Dray]:
    """A Dray that runs while the block does.

    arguments: for `dray up`. settings: environment variables. folder: deleted afterwards; a new folder by default.
    """
    dray = Dray(folder or Path(tempfile.mkdtemp(prefix="dray-t-")), free_port())
    try:
        started = dray.run("up", "--detach", *arguments, **(settings or {}))  # type: ignore[arg-type]
        assert started.returncode == 0, started.stdout + started.stderr
        yield dray
    finally:
        # If a test has stopped it already, its state folder is gone.
        stopped = dray.run("down") if (dray.folder / "s").exists() else None
        shutil.rmtree(dray.folder, ignore_errors=True)
    assert stopped is None or stopped.returncode == 0, stopped.stderr


@pytest.fixture
def another() -> Iterator[Dray]:
    """A Dray that is not running, for tests that start it themselves."""
    folder = Path(tempfile.mkdtemp(prefix="dray-t-"))
    dray = Dray(folder, free_port())
    yield dray
    dray.run("down")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def dray() -> Iterator[Dray]:
    """The running Dray that most tests share, serving the bundled model."""
    with started_dray() as running:
        yield running


@pytest.fixture(scope="session")
def client(dray: Dray) -> Iterator[openai.OpenAI]:
    # Its types name httpx2 alone; it takes both.
    judged: Any = httpx.Client(transport=JudgedTransport(), timeout=120)
    with openai.OpenAI(base_url=dray.url, api_key="none", max_retries=0, timeout=120, http_client=judged) as client:
        yield client


@pytest.fixture(scope="session")
def http(dray: Dray) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=dray.root, timeout=120, transport=JudgedTransport()) as http:
        yield http


@pytest.fixture(scope="session")
def bundled() -> ServedModel:
    """The bundled model, opened and checked."""
    return open_model(ModelSettings(), default_models_dir())
