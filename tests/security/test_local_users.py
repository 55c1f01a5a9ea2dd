"""Another user of the machine creates a folder first, or may write into it; every command that writes there refuses."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.doctor.machine import check_disks
from cluster.models.export import Compression, export_model
from cluster.models.folder import BUNDLED_FOLDER, open_model
from cluster.models.int8.convert import convert_folder, work_name
from cluster.models.shapes import make_random
from cluster.private_files import NotPrivate
from cluster.settings import ModelSettings, Settings
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


def dray(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"RAY_AUTH_TOKEN": "0" * 64} | variables  # otherwise `join` prompts for the token
    return forked_commands().run(*arguments, env=environment, timeout=120)


def assert_refused(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{folder} belongs to user {NOBODY}" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


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
    assert_refused(dray(*command, "--state-dir", str(folder)), folder)
    assert bystander.poll() is None
    assert (folder / "ray-token").read_text() == "known to the attacker"


@pytest.mark.parametrize("command", [["up"], ["down"]], ids=" ".join)
def test_a_link_in_place_of_the_state_folder_leads_nowhere(tmp_path: Path, command: list[str]) -> None:
    for name in ("ray", "redis", "teams", "haproxy"):
        (tmp_path / "home" / name).mkdir(parents=True)
        (tmp_path / "home" / name / "precious").write_text("precious")
    (tmp_path / "state").symlink_to(tmp_path / "home")
    done = dray(*command, "--state-dir", str(tmp_path / "state"))
    assert done.returncode == 1 and "is a link" in done.stderr
    assert len(list((tmp_path / "home").glob("*/precious"))) == 4


@as_root
@pytest.mark.parametrize("variable", ["DRAY_DATA_DIR", "DRAY_LEASE_DIR"])
def test_other_folders_of_another_user_are_refused(shared: Path, variable: str) -> None:
    folders = {f"DRAY_{name}_DIR": str(shared / name.lower()) for name in ("DATA", "LEASE", "STATE")}
    as_nobody((shared / "theirs").mkdir)
    assert_refused(dray("up", **folders | {variable: str(shared / "theirs")}), shared / "theirs")
    assert not list((shared / "theirs").iterdir())


@pytest.fixture
def foreign_models(shared: Path) -> Path:
    """A models folder of another user, with a model in it."""
    folder = shared / "models"
    as_nobody(folder.mkdir)
    shutil.copytree(BUNDLED_FOLDER, folder / "someone--model-int8")
    return folder


@as_root
@pytest.mark.parametrize("command", [["pull", "someone/other"], ["pull", "x.gguf"], ["remove", "someone/model"]])
def test_no_model_is_written_where_another_user_may_change_it(
    foreign_models: Path, tmp_path: Path, command: list[str]
) -> None:
    name = str(tmp_path / command[1]) if command[1].endswith(".gguf") else command[1]
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    before = sorted(foreign_models.rglob("*"))
    variables = {"DRAY_MODELS_DIR": str(foreign_models), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = dray("models", command[0], name, **variables)
    assert_refused(done, foreign_models)
    assert "set models_dir (DRAY_MODELS_DIR) to a folder of your own" in done.stderr
    # It is ours, and another user made the folder of unfinished downloads before.
    os.chown(foreign_models, 0, 0)
    if command[0] == "pull":
        (foreign_models / ".partial").mkdir()
        os.chown(foreign_models / ".partial", NOBODY, NOBODY)
        assert_refused(dray("models", command[0], name, **variables), foreign_models / ".partial")
        (foreign_models / ".partial").rmdir()
    assert sorted(foreign_models.rglob("*")) == before


@as_root
def test_no_model_is_exported_or_converted_beside_another_users_files(foreign_models: Path, shared: Path) -> None:
    target, source = foreign_models / "new", foreign_models / "someone--model-int8"
    for write in (
        lambda: export_model(source, target, Compression()),
        lambda: make_random(target, "qwen3-0.6b", Compression()),
        lambda: convert_folder(source, target, lambda step: None),
    ):
        with pytest.raises(NotPrivate, match=f"{foreign_models} belongs to user {NOBODY}"):
            write()
    work = shared / work_name("new")
    as_nobody(work.mkdir)
    with pytest.raises(NotPrivate, match=f"{work} belongs to user {NOBODY}"):
        convert_folder(source, shared / "new", lambda step: None)
    assert [*foreign_models.iterdir()] == [source] and not [*work.iterdir()]


@as_root
def test_a_model_is_read_from_a_folder_of_another_user(foreign_models: Path) -> None:
    for path in (foreign_models, *foreign_models.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert open_model(ModelSettings(source="someone/model"), foreign_models).folder.parent == foreign_models
    findings = [finding.message for finding in check_disks(Settings(models_dir=foreign_models))]
    assert [text for text in findings if f"not fetched into it: {foreign_models} belongs to user {NOBODY}" in text]
