"""Programs of others that tests run: fetched once from npm or PyPI, kept outside the checkout and this environment."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_INSTALL_S = 600


def from_npm(name: str, *packages: str) -> Path:
    """The folder `node_modules` with these packages. Skips the test where they cannot be had.

    name: of the folder that keeps them.
    """
    if (npm := shutil.which("npm")) is None:
        pytest.skip("npm is not installed")
    install = (npm, "install", "--no-audit", "--no-fund", "--prefix")
    return _fetched(name, packages, lambda folder: [[*install, str(folder), *packages]]) / "node_modules"


def from_pypi(name: str, *packages: str) -> Path:
    """The folder `bin` of a virtual environment with these packages. Skips the test where they cannot be had.

    name: of the folder that keeps them.
    """

    def commands(folder: Path) -> list[list[str]]:
        return [
            [sys.executable, "-m", "venv", str(folder)],
            [str(folder / "bin" / "pip"), "install", "--quiet", "--prefer-binary", *packages],
        ]

    return _fetched(name, packages, commands) / "bin"


def _fetched(name: str, packages: tuple[str, ...], commands: Callable[[Path], list[list[str]]]) -> Path:
    folder = Path(os.environ.get("DRAY_TEST_CACHE", "~/.cache/dray-tests")).expanduser() / name
    folder.mkdir(parents=True, exist_ok=True)
    complete = folder / ".complete"
    with (folder / ".lock").open("w") as lock:  # tests may run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if complete.is_file() and complete.read_text() == " ".join(packages):
            return folder
        for command in commands(folder):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
            except subprocess.TimeoutExpired:
                pytest.skip(f"{' and '.join(packages)} cannot be installed within {_INSTALL_S} s")
            if done.returncode:
                pytest.skip(f"{' and '.join(packages)} cannot be installed: {done.stderr.strip()[-300:]}")
        complete.write_text(" ".join(packages))
    return folder
