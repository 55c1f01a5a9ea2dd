"""The `dray` command as a whole: help, exit codes, completion and colour."""

import fcntl
import json
import os
import pty
import re
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

ROOT = Path(__file__).parents[2]

WITHOUT_JSON = {
    "up": "it runs until Ctrl-C; behind --detach, `dray status --json` says what it started",
    "join": "it runs until Ctrl-C",
    "down": "the exit code says all of it",
    "chat": "it is a conversation",
    "batch download": "it prints JSON Lines",
    "answers export": "it prints JSON Lines",
    "feedback export": "it prints JSON Lines",
    "k8s render": "it writes manifests, which are its result",
    "k8s chart": "it writes manifests, which are its result",
    "k8s wait-models": "the exit code says all of it",
}
"""Commands that have no --json, and why. All others have it, also those that act: it says what they did."""


def commands(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A command and every command below it, with their full names."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{path} {name}".strip())


def options(command: Any) -> set[str]:
    """Its options, with their dashes."""
    return {option for parameter in command.params for option in parameter.opts}


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
    assert {word for word in words if word.startswith("-")} <= options(command)


@pytest.mark.parametrize("path", [path for path, command in ALL.items() if not hasattr(command, "commands")])
def test_every_command_has_json_or_a_reason_to_have_none(path: str) -> None:
    assert ("--json" in options(ALL[path])) != (path in WITHOUT_JSON)


def test_every_json_is_described() -> None:
    rows = re.findall(r"^\| (`dray .*?) \| ", (ROOT / "docs/reference/json.md").read_text(), re.MULTILINE)
    described: set[str] = set()
    for row in rows:
        first, *others = re.findall(r"`([^`]+)`", row)
        name = first.removeprefix("dray ").partition(" --json")[0]
        described |= {name, *(f"{name.rpartition(' ')[0]} {other}" for other in others)}
    assert described == {path for path, command in ALL.items() if "--json" in options(command)}


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
