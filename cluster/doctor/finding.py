"""The result of one check."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cluster.launch.preflight import LaunchError

Level = Literal["passed", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found, and what to do about it. warning: Dray starts, but something is slow or missing."""

    check: str
    level: Level
    message: str


def attempt(check: str, work: Callable[[], str]) -> Finding:
    """Passed with the message that the work returns, or failed with its LaunchError."""
    try:
        return Finding(check, "passed", work())
    except LaunchError as error:
        return Finding(check, "failed", str(error))
