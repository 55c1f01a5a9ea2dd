"""`dray logs`: every log file of a Dray in the order of time, for people and as JSON; new lines as they come."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.logs import LogReader

SECOND = 1_764_240_000
OWN = {"level": "warning", "logger": "dray.router", "message": "slow", "request_id": "r1"}


def own(second: int, **fields: object) -> str:
    when = datetime.fromtimestamp(SECOND + second, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": when, **OWN, **fields}) + "\n"


def local(second: int, text: str, form: str = "[%Y-%m-%d %H:%M:%S,500 I 1 2] ") -> str:
    return datetime.fromtimestamp(SECOND + second).strftime(form) + text + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    logs = folder / "ray" / "session_1" / "logs"
    logs.mkdir(parents=True)
    (folder / "ray" / "session_latest").symlink_to("session_1")
    (folder / "redis").mkdir()
    (logs / "worker-1.err").write_text("before any time\n" + own(1) + own(4, message="later"))
    (logs / "worker-1.err.1").write_text(own(0, message="first"))
    (logs / "raylet.out").write_text(local(2, "(raylet) up") + "  a line that goes on\n")
    (folder / "redis" / "redis.log").write_text(local(3, "* Ready", "7:M %d %b %Y %H:%M:%S.250 "))
    (folder / "dray.json").write_text("{}")
    return folder


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner(env={"DRAY_STATE_DIR": str(folder)}).invoke(app, ["logs", *arguments])


ENDS = ["first", "before any time", "slow", "(raylet) up", "a line that goes on", "* Ready", "later"]


def test_lines_of_all_files_are_in_the_order_of_time(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert [end for line, end in zip(lines, ENDS, strict=True) if end in line] == ENDS
    assert lines[2].endswith("warning slow  logger=dray.router request_id=r1".replace("logger=dray.router ", ""))
    assert lines[3].partition(" ray/")[2].startswith("session_1/logs/raylet.out: ")
    stamps = [line[:23] for line in lines]
    assert stamps == sorted(stamps)
    assert len(run(folder, "--lines", "2").stdout.splitlines()) == 2


def test_json_is_one_object_a_line_and_dray_s_own_are_unchanged(folder: Path) -> None:
    result = run(folder, "--json")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["message"].strip() for record in records][3:] == [
        *(local(2, "(raylet) up").strip(), "a line that goes on"),
        local(3, "* Ready", "7:M %d %b %Y %H:%M:%S.250 ").strip(),
        "later",
    ]
    assert own(1).strip() in result.stdout and "file" in records[3]
    assert [record["time"] for record in records] == sorted(record["time"] for record in records)


def test_without_logs_the_command_says_so(tmp_path: Path) -> None:
    result = run(tmp_path / "none")
    assert result.exit_code == 1 and result.stdout == "" and "`dray up`" in result.stderr


def test_what_is_written_meanwhile_is_read_once_whole_and_also_after_a_rotation(folder: Path) -> None:
    reader, log = LogReader(folder), folder / "dray.log"
    assert len(list(reader.lines())) == len(ENDS)
    assert list(reader.lines()) == []
    with log.open("a") as file:
        print(own(9, message="one"), end="", file=file, flush=True)
        print("half", end="", file=file, flush=True)
        assert [line.text for line in reader.lines()] == [own(9, message="one").strip()]
        print(" a line", file=file, flush=True)
        assert [(line.text, line.at) for line in reader.lines()] == [("half a line", SECOND + 9)]
    os.truncate(log, 0)
    log.write_text("new\n")
    assert [line.text for line in reader.lines()] == ["new"]


def test_a_log_line_cannot_steer_the_terminal(folder: Path) -> None:
    (folder / "dray.log").write_text("a\x1b]0;title\x07b\n" + own(1, message="c\x1b[2Jd"))
    for arguments in ([], ["--json"]):
        assert "\x1b" not in run(folder, *arguments).stdout


def test_follow_goes_on_until_ctrl_c(folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", "logs", "--follow", "--lines", "1"],
        env=os.environ | {"DRAY_STATE_DIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "later" in process.stdout.readline()
        (folder / "dray.log").write_text(own(20, message="another"))
        assert "another" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
