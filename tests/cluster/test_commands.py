"""The `dray` command as a whole: help, exit codes, completion and colour."""

import fcntl
import json
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cluster.cli import app
from cluster.launch.state import Record, write_record
from cluster.models.catalog import CATALOG

ACTING = {
    "up",
    "join",
    "deploy",
    "down",
    "chat",
    "cache clear",
    "batch download",
    "cache delete",
    "answers import",
    "answers export",
    "answers pin",
    "answers edit",
    "answers remove",
    "feedback accept",
    "feedback export",
    "plan measure",
    "privacy reseal",
    "k8s render",
    "k8s chart",
    "k8s wait-models",
    "models convert",
    "models pull",
    "models export",
    "models remove",
    "models random",
    "teams add",
    "teams set",
    "teams remove",
    "keys revoke",
    "keys remove",
    "keys disable",
}
"""Commands that act and print only a confirmation, or print JSON Lines anyway."""


def commands(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A command and every command below it, with their full names."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{path} {name}".strip())


ALL = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", ALL)
def test_help_has_an_example_that_would_work(path: str) -> None:
    result = CliRunner().invoke(app, [*path.split(), "--help"], env={"COLUMNS": "300"})
    assert result.exit_code == 0
    examples = [line.partition("Example: ")[2] for line in result.output.splitlines() if "Example: dray" in line]
    examples += [line.partition("Example: ")[2] for line in result.output.splitlines() if "Example: DRAY_" in line]
    assert len(examples) == 1, result.output
    words = shlex.split(examples[0].partition(" (")[0].partition(", then")[0])
    words = words[words.index("dray") + 1 :]
    assert " ".join(words).startswith(path)
    command: Any = ALL[""]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known


@pytest.mark.parametrize("path", [path for path, command in ALL.items() if not hasattr(command, "commands")])
def test_commands_that_report_something_have_json(path: str) -> None:
    options = {option for parameter in ALL[path].params for option in parameter.opts}
    assert ("--json" in options) != (path in ACTING)


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"dray {version('dray')}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["settings"],
        ["models", "list"],
        ["models", "show", "qwen3-0.6b"],
        ["models", "check", "bundled"],
        ["k8s", "check-node"],
        ["doctor", "--offline"],
        ["bench", "--cost", "--tokens-per-s", "50"],
    ],
)
def test_json_is_all_that_is_on_standard_output(arguments: list[str], tmp_path: Path) -> None:
    done = dray(*arguments, "--json", *(["-"] if arguments[0] == "bench" else []), folder=tmp_path, FORCE_COLOR="1")
    assert json.loads(done.stdout), done.stderr


def dray(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli", *arguments],
        env=os.environ | {"DRAY_STATE_DIR": str(folder / "s")} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_exit_codes_are_those_in_the_help(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["models", "show", "qwen3-0.6b"]).exit_code == 0
    assert CliRunner().invoke(app, ["status", "--jsn"]).exit_code == 2
    failed = dray("status", folder=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr == "error: Dray is not running; start it with `dray up`\n"
    (tmp_path / "s").mkdir(mode=0o700)
    with (tmp_path / "s" / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_record(tmp_path / "s", Record(os.getpid(), "starting Ray"))
        starting = dray("status", "--json", folder=tmp_path)
    assert (starting.returncode, json.loads(starting.stdout)) == (3, {"stage": "starting Ray"})


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("dray mod", {"models"}),
        ("dray models show qwen3-", {name for name in CATALOG if name.startswith("qwen3-")}),
        ("dray up --model deepseek", {name for name in CATALOG if name.startswith("deepseek")}),
        ("dray up --weight int", {"int4", "int8"}),
        ("dray models pull --source m", {"modelscope"}),
    ],
)
def test_a_shell_completes_commands_and_values(line: str, completed: set[str]) -> None:
    variables = {"_DRAY_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    assert set(CliRunner().invoke(app, env=variables, prog_name="dray").output.split()) == completed


@pytest.mark.slow
def test_only_terminals_get_colour(tmp_path: Path) -> None:
    assert "\x1b" not in dray("models", "list", folder=tmp_path).stdout

    def on_terminal(**environment: str) -> bytes:
        controller, terminal = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", "status"],
            env=os.environ | {"DRAY_STATE_DIR": str(tmp_path / "s"), "TERM": "xterm"} | environment,
            stderr=terminal,
        ):
            os.close(terminal)
            output = os.read(controller, 4096)
        os.close(controller)
        return output

    assert b"\x1b[31merror:" in on_terminal()
    assert b"\x1b[31m" not in on_terminal(NO_COLOR="1")
