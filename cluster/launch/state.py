"""The record of a running Dray in its state folder: who runs, where it answers, how far the start has come."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


class AlreadyRunning(Exception):
    """Another Dray holds this state folder."""


@dataclass(frozen=True, slots=True)
class Record:
    """What the other commands need to find a running Dray. stage: "ready" once it serves.

    head: of the Dray that this machine has joined; empty where it runs its own. redis, teams: URLs of the Redis of
    answers, and of that of teams. keys: whether there was one at the start. rollout: what a deployment is waiting for;
    empty while there is none. answered: the last wish that was carried out, or refused, and then why.
    """

    pid: int
    stage: str
    url: str = ""
    models: list[str] = field(default_factory=list)
    redis: str = ""
    teams: str = ""
    keys: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    head: str = ""
    rollout: str = ""
    answered: str = ""
    refused: str = ""


@dataclass(frozen=True, slots=True)
class DeployRequest:
    """What `dray deploy` asks of the launcher: other settings."""

    id: str
    settings: dict[str, Any]


def write_record(folder: Path, record: Record) -> None:
    """Replaces the record."""
    _replace(folder / "dray.json", asdict(record))


def write_deploy_request(folder: Path, wish: DeployRequest) -> None:
    """Leaves a wish for the launcher; one that it has not taken yet is replaced."""
    _replace(folder / "wish.json", asdict(wish))


def take_deploy_request(folder: Path) -> DeployRequest | None:
    """The wish that lies there, which is then gone; None when there is none."""
    path = folder / "wish.json"
    try:
        wish = DeployRequest(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    path.unlink()
    return wish


def _replace(path: Path, content: dict[str, Any]) -> None:
    # In one step, so that no reader sees half of it.
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(json.dumps(content, default=str))
    new.replace(path)


def read_record(folder: Path) -> Record | None:
    """The record of the Dray that runs here; None when none does."""
    try:
        record = Record(**json.loads((folder / "dray.json").read_text()))
    except FileNotFoundError:
        return None
    return record if is_held(folder) else None


def is_held(folder: Path) -> bool:
    """Whether a living process holds the folder."""
    try:
        with (folder / "up.lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Holds the state folder for one Dray. The kernel lets go when the process dies. Raises AlreadyRunning."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "up.lock"
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            record = read_record(folder)
            where = f" at {record.url} (process {record.pid})" if record and record.url else ""
            raise AlreadyRunning(
                f"Dray runs already{where}; stop it with `dray down`, or give the other one a --state-dir of its own"
            ) from None
        if not path.exists() or path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
            raise AlreadyRunning("another Dray ended here in this very moment; try again")
        try:
            yield
        finally:
            for name in ("dray.json", "wish.json"):
                (folder / name).unlink(missing_ok=True)
            path.unlink()
