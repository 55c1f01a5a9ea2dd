"""The launcher while Dray runs: if a part of its work fails, it reports that and continues."""

import json
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.configuration import load
from cluster.cores import usable_cores
from cluster.launch.duty import RETRY_S, Duty
from cluster.launch.preflight import find_engines
from cluster.launch.ray_node import RayEndedError
from cluster.launch.state import (
    DEPLOY_REQUEST_FILE,
    RECORD_FILE,
    DeployRequest,
    Record,
    hold,
    read_record,
    write_deploy_request,
)
from cluster.launch.supervisor import Supervisor
from cluster.redis_server import OwnRedis
from cluster.serve_config import Routers
from tests.conftest import wait_for


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_failing_duty_is_reported_once_and_tried_again_after_a_pause(caplog: pytest.LogCaptureFixture) -> None:
    clock, tries = Clock(), 0
    errors: list[Exception | None] = [OSError("disk full"), OSError("disk full"), ValueError("other"), None]

    def work() -> None:
        nonlocal tries
        tries += 1
        if error := errors[tries - 1]:
            raise error

    duty = Duty("cannot write", work, clock=clock)
    for expected in ("disk full", "disk full", "other"):
        before = tries
        duty.run()
        duty.run()
        assert tries == before + 1
        assert duty.problem == f"cannot write: {expected}; retrying every 5 s"
        clock.now += RETRY_S
    duty.run()
    assert duty.problem == ""
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.partition(";")[0] for line in lines] == [
        "cannot write: disk full",
        "cannot write: other",
        "resolved: cannot write: other",
    ]


def test_a_duty_runs_no_more_often_than_its_interval() -> None:
    clock, times = Clock(), []
    duty = Duty("", lambda: times.append(clock.now), interval_s=2, clock=clock)
    for _ in range(8):
        duty.run()
        clock.now += 0.5
    assert times == [0, 2]


@contextmanager
def supervised(
    servers: dict[str, OwnRedis] | None = None, check_ray: Callable[[], None] = lambda: None
) -> Iterator[tuple[Supervisor, Path]]:
    """A supervisor of the bundled model, without Ray, and its state folder."""
    with tempfile.TemporaryDirectory(prefix="dray-t-") as name:
        folder = Path(name) / "s"
        settings = load({"state_dir": folder, "lease_dir": Path(name) / "c"}).settings
        with hold(folder):
            engines = find_engines(settings, usable_cores()).engines
            routers = Routers(settings, "", "", engines)
            yield Supervisor(routers, 1, servers or {}, check_ray, keys=False), folder


def record_of(folder: Path) -> Record:
    record = read_record(folder)
    assert record is not None
    return record


def request(**settings: Any) -> DeployRequest:
    return DeployRequest("id-1", load().settings.model_dump(mode="json") | settings)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"prot": 1}, "prot: unknown setting"),
        ({"limits": {"messages": -1}}, "limits.messages"),
        ({"model": {"source": "/nowhere"}}, "model folder /nowhere does not exist"),
        ({"port": 1}, "port cannot change"),
    ],
)
def test_a_wrong_deploy_request_is_refused_and_answered(settings: dict[str, Any], reason: str) -> None:
    with supervised() as (supervisor, folder):
        fixed = {"state_dir": str(folder), "lease_dir": str(folder.parent / "c")}
        write_deploy_request(folder, request(**(fixed | settings)))
        supervisor.reconcile()
        record = record_of(folder)
        assert record.answered == "id-1" and reason in record.refused
        assert (record.stage, record.rollout, record.problems) == ("ready", "", [])
        assert not (folder / DEPLOY_REQUEST_FILE).exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"id": 1, "settings": {}}', b'{"id": "\xff"}', b"\x00" * 99])
def test_garbage_in_place_of_a_deploy_request_is_refused(content: bytes) -> None:
    with supervised() as (supervisor, folder):
        (folder / DEPLOY_REQUEST_FILE).write_bytes(content)
        supervisor.reconcile()
        assert "the deploy request was unreadable" in record_of(folder).refused
        assert not (folder / DEPLOY_REQUEST_FILE).exists()


def test_an_unreadable_deploy_request_is_a_problem_until_it_is_gone() -> None:
    with supervised() as (supervisor, folder):
        (folder / DEPLOY_REQUEST_FILE).mkdir()
        supervisor.reconcile()
        [problem] = record_of(folder).problems
        assert "cannot take deploy requests" in problem and "Is a directory" in problem
        (folder / DEPLOY_REQUEST_FILE).rmdir()

        def resolved() -> bool:
            supervisor.reconcile()
            return not record_of(folder).problems

        wait_for(resolved)


def test_a_record_that_cannot_be_written_is_written_later(caplog: pytest.LogCaptureFixture) -> None:
    with supervised() as (supervisor, folder):
        away = folder.with_name("away")
        (folder / DEPLOY_REQUEST_FILE).write_text("{")
        record, earlier = folder / RECORD_FILE, folder / "earlier.json"
        record.rename(earlier)
        record.mkdir()  # nothing can be written there
        supervisor.reconcile()
        assert "cannot write the record" in caplog.text
        record.rmdir()
        earlier.rename(record)
        assert record_of(folder).refused == ""
        folder.rename(away)
        supervisor.reconcile()
        away.rename(folder)

        def written() -> str:
            supervisor.reconcile()
            return record_of(folder).refused

        assert "unreadable" in wait_for(written)


def test_a_redis_that_does_not_restart_is_a_problem_until_it_does() -> None:
    with tempfile.TemporaryDirectory(prefix="dray-r-") as name:
        server = OwnRedis(Path(name) / "r", 16)
        server.start()
        with supervised({"the answer cache": server}) as (supervisor, folder):
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            (Path(name) / "r").rename(Path(name) / "away")
            (Path(name) / "r").touch()

            def problems() -> list[str]:
                supervisor.reconcile()
                return record_of(folder).problems

            [problem] = wait_for(problems)
            assert "the Redis of the answer cache has ended and does not start again" in problem
            (Path(name) / "r").unlink()
            wait_for(lambda: not problems())
            server.stop()


def test_the_supervisor_ends_only_with_ray() -> None:
    def check_ray() -> None:
        raise RayEndedError("Ray has ended")

    with supervised(check_ray=check_ray) as (supervisor, _), pytest.raises(RayEndedError):
        supervisor.reconcile()


def test_an_older_record_can_be_read(tmp_path: Path) -> None:
    with hold(tmp_path):
        (tmp_path / "dray.json").write_text(json.dumps({"pid": 1, "stage": "ready", "of_another_version": True}))
        assert record_of(tmp_path).problems == []
