"""How to install the optional packages of Dray (its extras) into the environment that it runs in."""

import shlex
import sys
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

_ROOT = Path(__file__).parents[1]


def install_command(extra: str, root: Path = _ROOT) -> str:
    """The shell command that installs an extra, for an error message.

    From a checkout it installs Dray again with the extra. An installed wheel has no source beside it, and Dray is on no
    package index, so there it names the packages that the extra consists of.
    root: the folder that holds the package `cluster`.
    """
    pip = [sys.executable, "-m", "pip", "install"]
    if (root / "pyproject.toml").is_file():
        return shlex.join([*pip, "--editable", f"{root}[{extra}]"])
    needed = [Requirement(line) for line in requires("dray") or ()]
    return shlex.join([*pip, *(f"{one.name}{one.specifier}" for one in needed if _belongs_to(one, extra))])


def _belongs_to(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
