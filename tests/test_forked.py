"""A forked command does what one in a new interpreter does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.forked import ForkedCommands, forked_commands


@pytest.mark.parametrize(
    "arguments", [("--version",), ("--help",), ("models", "show", "nothing"), ("settings", "--json"), ("nonsense",)]
)
def test_its_output_and_exit_code_are_the_same(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "dray.yaml").write_text("limits:\n  messages: 7\n")  # in the folder it runs in
    env = os.environ | {"DRAY_PORT": "8123", "DRAY_STATE_DIR": str(tmp_path / "s"), "COLUMNS": "200"}
    command = [sys.executable, "-m", "cluster.cli", *arguments]
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    new = subprocess.run(command, env=env | path, cwd=tmp_path, capture_output=True, text=True, check=False)
    forked = forked_commands().run(*arguments, env=env, cwd=tmp_path)
    assert (forked.returncode, forked.stdout, forked.stderr) == (new.returncode, new.stdout, new.stderr)
    if arguments[0] == "settings":
        assert "8123" in forked.stdout and '"value": 7' in forked.stdout
        assert "8123" not in forked_commands().run(*arguments, env=os.environ, cwd=tmp_path).stdout


def test_one_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "s" / "dray.log"
    log.parent.mkdir(mode=0o700)
    log.write_text("one line\n")
    env = os.environ | {"DRAY_STATE_DIR": str(log.parent)}
    commands = ForkedCommands()
    with pytest.raises(subprocess.TimeoutExpired):
        commands.run("logs", "--follow", env=env, timeout=1)
    wait_for(lambda: not commands.running)
    assert commands.run("--version", env=env).returncode == 0
    commands.close()
