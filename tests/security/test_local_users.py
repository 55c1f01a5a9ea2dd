"""Another user of the machine creates the state folder, whose name can be guessed; every command refuses it."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forked import forked_commands
from tests.security.test_private_files import NOBODY, as_nobody, as_root, shared

__all__ = ["shared"]  # a fixture

COMMANDS = (
    ["up"],
    ["up", "--detach"],
    ["join", "127.0.0.1:1"],
    ["deploy"],
    ["down"],
    ["status"],
    ["doctor", "--offline"],
)


def dray(*arguments: str, state_dir: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"RAY_AUTH_TOKEN": "0" * 64}  # otherwise `join` prompts for it
    return forked_commands().run(*arguments, "--state-dir", str(state_dir), env=environment, timeout=120)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that a forged record names as Dray's launcher."""
    with subprocess.Popen(["sleep", "300"]) as process:
        yield process
        process.kill()


@as_root
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_state_folder_of_another_user_is_refused(
    shared: Path, bystander: subprocess.Popen[bytes], command: list[str]
) -> None:
    folder = shared / "state"
    record = json.dumps({"pid": bystander.pid, "stage": "ready", "url": "http://127.0.0.1:1/v1"})

    def prepare() -> None:
        folder.mkdir()
        (folder / "dray.json").write_text(record)
        (folder / "up.lock").touch()
        (folder / "ray-token").write_text("known to the attacker")

    as_nobody(prepare)
    done = dray(*command, state_dir=folder)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"belongs to user {NOBODY}" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert bystander.poll() is None
    assert (folder / "ray-token").read_text() == "known to the attacker"


@pytest.mark.parametrize("command", [["up"], ["down"]], ids=" ".join)
def test_a_link_in_place_of_the_state_folder_leads_nowhere(tmp_path: Path, command: list[str]) -> None:
    for name in ("ray", "redis", "teams", "haproxy"):
        (tmp_path / "home" / name).mkdir(parents=True)
        (tmp_path / "home" / name / "precious").write_text("precious")
    (tmp_path / "state").symlink_to(tmp_path / "home")
    done = dray(*command, state_dir=tmp_path / "state")
    assert done.returncode == 1 and "is a link" in done.stderr
    assert len(list((tmp_path / "home").glob("*/precious"))) == 4
