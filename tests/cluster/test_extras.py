"""The command that installs an extra: it must also work if Dray is on no package index."""

import shlex
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cluster.extras import install_command

CHECKOUT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", ["page", "plan", "export", "gguf"])
def test_from_a_checkout_it_names_the_folder(extra: str) -> None:
    *pip, editable, target = shlex.split(install_command(extra))
    assert pip == [sys.executable, "-m", "pip", "install"] and editable == "--editable"
    folder, _, name = target.rstrip("]").partition("[")
    assert (Path(folder) / "pyproject.toml").samefile(CHECKOUT / "pyproject.toml")
    assert name in EXTRAS


@pytest.mark.parametrize("extra", ["page", "plan"])
def test_from_a_wheel_it_names_packages(extra: str, tmp_path: Path) -> None:
    assert requires("dray")
    command = shlex.split(install_command(extra, tmp_path))
    assert {Requirement(text).name for text in command[4:]} == {Requirement(text).name for text in EXTRAS[extra]}
