"""The state folder of a running Dray: who holds it, the record that other commands read, and their deploy requests."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from cluster.private_files import check_private_folder, private_folder, write_private

RECORD_FILE, DEPLOY_REQUEST_FILE, LOCK_FILE = "dray.json", "deploy-request.json", "up.lock"


class AlreadyRunning(Exception):
    """Another Dray holds this state folder."""


class DeployRequestError(Exception):
    """The deploy request cannot be read; the message says why. It has been removed."""


@dataclass(frozen=True, slots=True)
class Record:
    """What the other commands need to know of a running Dray.

    pid: of its launcher. stage: "ready" once it serves, before that what it is starting.
    url: base URL of the API. models: their names. settings: as JSON.
    redis, teams: URLs of the Redis of answers and of that of teams.
    keys: whether requests needed an API key at the start.
    head: HOST:PORT of the Dray that this machine has joined; empty where it runs its own.
    problems: what the launcher cannot do now and keeps retrying, a sentence each.
    rollout: what a running deployment waits for; empty while there is none.
    answered: id of the last deploy request that was carried out or refused. refused: why the last one was refused.
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
    problems: list[str] = field(default_factory=list)
    rollout: str = ""
    answered: str = ""
    refused: str = ""


@dataclass(frozen=True, slots=True)
class DeployRequest:
    """Asks the launcher to change to other settings."""

    id: str
    settings: dict[str, Any]


def write_record(folder: Path, record: Record) -> None:
    """Replaces the record. Raises OSError."""
    _replace(folder / RECORD_FILE, asdict(record))


def write_deploy_request(folder: Path, request: DeployRequest) -> None:
    """Leaves a request for the launcher, in place of an earlier one that it has not taken yet."""
    _replace(folder / DEPLOY_REQUEST_FILE, asdict(request))


def take_deploy_request(folder: Path) -> DeployRequest | None:
    """Reads the request and removes its file; None when there is none. Raises DeployRequestError, OSError."""
    path = folder / DEPLOY_REQUEST_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    path.unlink()
    try:
        return msgspec.json.decode(content, type=DeployRequest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DeployRequestError(f"the deploy request was unreadable: {error}") from None


def _replace(path: Path, content: dict[str, Any]) -> None:
    write_private(path, json.dumps(content, default=str))


def read_record(folder: Path) -> Record | None:
    """The record of the Dray that runs here; None when none does. Raises NotPrivate."""
    # Another user could have made the folder, with a record that names a process to stop.
    check_private_folder(folder)
    try:
        record = msgspec.json.decode((folder / RECORD_FILE).read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    return record if is_held(folder) else None


def is_held(folder: Path) -> bool:
    """Whether a living process holds the folder."""
    try:
        with (folder / LOCK_FILE).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Holds the state folder for one Dray. The kernel releases it when the process dies. Raises
    AlreadyRunning, NotPrivate.
    """
    private_folder(folder)
    path = folder / LOCK_FILE
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            record = read_record(folder)
            where = f" at {record.url} (process {record.pid})" if record and record.url else ""
            raise AlreadyRunning(
                f"Dray already runs{where}; stop it with `dray down`, or start the second one with its own --state-dir"
            ) from None
        if not path.exists() or path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
            raise AlreadyRunning("another Dray was just stopping here; try again")
        try:
            yield
        finally:
            for name in (RECORD_FILE, DEPLOY_REQUEST_FILE, LOCK_FILE):
                (folder / name).unlink(missing_ok=True)


def remove_folder_if_empty(folder: Path) -> None:
    """Removes a folder of this user that nothing is left in."""
    try:
        check_private_folder(folder)
        folder.rmdir()
    except OSError:
        return
