"""Attacks on the store by names that lead out of it, from users, links and hubs. Nothing outside it may change."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.models.export import Compression
from cluster.models.fetch import FetchError
from cluster.models.folder import BUNDLED_FOLDER, UnknownModel, folder_of
from cluster.models.hubs import RemoteFile, open_hub
from cluster.models.paths import UnsafeNameError, child, owned_child
from cluster.models.store import installed, obtain, remove
from tests.models.hubs import Repository, StandIn, stand_in

NAME = "someone/model"
FOLDER = "someone--model-int8"
ESCAPES = ["..", ".", "", "/", "../", "./", "a/..", "a/../..", "../models", "..\\x", "x\0", "../neighbour", "a/b\0"]
HUBS = {"huggingface": "HF_ENDPOINT", "modelscope": "MODELSCOPE_ENDPOINT"}


def install(folder: Path) -> Path:
    """A folder that counts as a model."""
    folder.mkdir(parents=True)
    (folder / "openvino_model.bin").write_bytes(b"weights")
    return folder


def snapshot(folder: Path) -> dict[Path, bytes | Path]:
    """Every file and link below a folder, except the store's unfinished downloads."""
    paths = (path for path in sorted(folder.rglob("*")) if ".partial" not in path.parts)
    return {
        path: path.readlink() if path.is_symlink() else path.read_bytes()
        for path in paths
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one model. The folder above it holds a neighbour that must survive everything."""
    install(tmp_path / "home" / "models" / FOLDER)
    install(tmp_path / "home" / "neighbour")
    return tmp_path / "home" / "models"


def dray_remove(store: Path, name: str, *options: str) -> Result:
    environment = {"DRAY_MODELS_DIR": str(store), "COLUMNS": "200"}
    return CliRunner(env=environment).invoke(app, ["models", "remove", *options, "--", name])


@pytest.mark.parametrize("name", [*ESCAPES, ".partial", "neighbour", "someone--model-int8/", f"x/../{FOLDER}"])
def test_only_models_in_the_store_can_be_removed(store: Path, name: str) -> None:
    (store / ".partial").mkdir()
    (store / "notes").mkdir()
    before = snapshot(store.parent)
    result = dray_remove(store, name)
    assert result.exit_code == 1 and "removed" not in result.stdout
    assert "Dray deletes only models that it has fetched" in result.stderr
    assert snapshot(store.parent) == before and (store / ".partial").is_dir()


def test_paths_are_refused(store: Path) -> None:
    before = snapshot(store.parent)
    for path in (store, store / FOLDER, store.parent / "neighbour", store / ".." / "neighbour", store / "notes"):
        result = dray_remove(store, str(path))
        assert result.exit_code == 1 and "removed" not in result.stdout
    assert "notes" not in dray_remove(store, "notes").stdout
    assert snapshot(store.parent) == before


def test_a_folder_without_a_model_is_left_alone(store: Path) -> None:
    (store / "notes").mkdir()
    (store / "notes" / "text").write_text("mine")
    assert dray_remove(store, "notes").exit_code == 1
    assert (store / "notes" / "text").read_text() == "mine"


@pytest.mark.parametrize("where", [FOLDER, f".partial/{FOLDER}", f".partial/{FOLDER}.weights", ".partial"])
def test_a_link_is_refused_and_its_target_is_untouched(store: Path, where: str) -> None:
    neighbour = store.parent / "neighbour"
    link = store / where
    link.parent.mkdir(exist_ok=True)
    if link.is_dir():
        shutil.rmtree(link)
    link.symlink_to(neighbour)
    before = snapshot(store.parent)
    result = dray_remove(store, NAME)
    assert (
        result.exit_code == 1 and "removed" not in result.stdout and f"{link} is a link to {neighbour}" in result.stderr
    )
    assert snapshot(store.parent) == before and link.is_symlink()


def test_a_broken_link_is_refused(store: Path) -> None:
    for target in ("nowhere", "loop"):
        (store / "loop").symlink_to(target)
        result = dray_remove(store, "loop")
        assert result.exit_code == 1 and "is a link" in result.stderr and (store / "loop").is_symlink()
        (store / "loop").unlink()


def test_links_inside_a_model_are_removed_but_not_followed(store: Path) -> None:
    neighbour = store.parent / "neighbour"
    (store / FOLDER / "linked").symlink_to(neighbour)
    assert json.loads(dray_remove(store, NAME, "--json").stdout) == {"folder": str(store / FOLDER)}
    assert not (store / FOLDER).exists() and (neighbour / "openvino_model.bin").is_file()


def test_the_store_itself_may_be_a_link(store: Path) -> None:
    linked = store.parent / "linked"
    linked.symlink_to(store)
    result = dray_remove(linked, FOLDER)
    assert result.exit_code == 0 and f"removed {linked / FOLDER}" in result.stdout
    assert not (store / FOLDER).exists()


def test_either_name_removes_the_model_and_its_interrupted_download(store: Path) -> None:
    for name in (NAME, FOLDER, "Someone/Model"):
        (store / FOLDER).mkdir(exist_ok=True)
        (store / FOLDER / "openvino_model.bin").touch()
        for leftover in (FOLDER, f"{FOLDER}.weights"):
            (store / ".partial" / leftover).mkdir(parents=True)
        result = dray_remove(store, name)
        assert result.exit_code == 0 and f"removed {store / FOLDER}" in result.stdout
        assert installed(store) == [] and not [path for path in (store / ".partial").iterdir() if path.is_dir()]
    (store / ".partial" / f"{FOLDER}.weights").mkdir()
    assert dray_remove(store, NAME).exit_code == 0
    assert not (store / ".partial" / f"{FOLDER}.weights").exists()


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="needs Linux")
def test_a_failed_deletion_is_not_reported_as_removed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store / FOLDER

    def refuse(path: str, *, dir_fd: int | None = None) -> None:
        raise PermissionError(13, "Permission denied", path)

    # Tests may run as root, which may delete everything, so only the kernel's refusal is simulated.
    monkeypatch.setattr(os, "unlink", refuse)
    result = dray_remove(store, NAME)
    monkeypatch.undo()
    assert result.exit_code == 1 and "removed" not in result.stdout
    assert "Permission denied" in result.stderr and str(folder) in result.stderr and folder.is_dir()


@pytest.mark.parametrize("weight", ["../x", "/x", "x/../../neighbour", "int8\0"])
def test_a_weight_that_is_a_path_is_refused(store: Path, weight: str) -> None:
    before = snapshot(store.parent)
    with pytest.raises(UnknownModel):
        remove(NAME, weight, store)
    with pytest.raises(UnknownModel):
        folder_of(NAME, weight, store)
    assert snapshot(store.parent) == before


@pytest.mark.parametrize("source", ["a/..", "a/.", "a/", "a/b\0", "a/b\\c", "a/b/c", "nobody"])
def test_no_source_names_a_folder_outside_the_store(store: Path, source: str) -> None:
    with pytest.raises(UnknownModel):
        folder_of(source, "int8", store)


@pytest.mark.parametrize("name", ["", ".", "..", "/", "/etc", "a/b", "../a", "a\\b", "a\0"])
def test_a_name_is_one_entry_in_its_folder(tmp_path: Path, name: str) -> None:
    for make in (child, owned_child):
        with pytest.raises(UnsafeNameError):
            make(tmp_path, name)
    assert child(tmp_path, "..json") == tmp_path / "..json"


class NoProgress:
    """Ignores the progress of a download."""

    def begin(self, files: object) -> None: ...

    def advance(self, path: str, size: int) -> None: ...

    def check(self, path: str) -> None: ...


@pytest.fixture(scope="module", params=list(HUBS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, StandIn]]:
    """A hub's name and its stand-in. Shared by all tests, because ModelScope's client reads its address once."""
    with stand_in(request.param) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("user")))
        patch.setenv(HUBS[request.param], server.url)
        yield request.param, server


@pytest.fixture
def hub(server: tuple[str, StandIn]) -> tuple[str, Repository]:
    """A hub's name, and its repository NAME, which holds the bundled model."""
    name, running = server
    running.repositories[NAME] = Repository.of(BUNDLED_FOLDER)
    return name, running.repositories[NAME]


def pull(hub: str, store: Path) -> Path:
    return obtain(NAME, Compression(), store, open_hub(hub), NoProgress(), lambda stage: None, convert=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["../evil.json", "/tmp/evil.json", "a/../../evil.json", "a//evil.json", "evil\0.json"])
def test_a_hub_that_lists_a_path_out_of_the_folder_is_refused(
    hub: tuple[str, Repository], tmp_path: Path, path: str
) -> None:
    name, repository = hub
    repository.files[path] = b"{}"
    store = tmp_path / "home" / "models"
    with pytest.raises(FetchError, match=r"evil.*nothing was fetched"):
        pull(name, store)
    assert not list(tmp_path.rglob("*evil*")) and not list(store.glob("[!.]*"))


def test_a_file_name_with_wildcards_fetches_no_other_file(hub: tuple[str, Repository], tmp_path: Path) -> None:
    """ModelScope's client lists the repository again, checks no path, and treats the names as patterns."""
    name, repository = hub
    repository.files["*.json"] = b"{}"
    repository.added = {"../../../evil.json": b"{}", "sub/evil.json": b"{}"}
    folder = pull(name, tmp_path / "home" / "models")
    assert (folder / "*.json").read_bytes() == b"{}" and (folder / "openvino_model.bin").is_file()
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("where", [".partial", f".partial/{FOLDER}", f".partial/{FOLDER}/config.json", FOLDER])
def test_nothing_is_fetched_through_a_link(hub: tuple[str, Repository], tmp_path: Path, where: str) -> None:
    store, outside = tmp_path / "home" / "models", tmp_path / "outside"
    (store / where).parent.mkdir(parents=True)
    (store / where).symlink_to(outside)
    with pytest.raises(UnsafeNameError, match="is a link"):
        pull(hub[0], store)
    assert not outside.exists()


def test_a_fetched_model_is_listed_with_its_source(hub: tuple[str, Repository], tmp_path: Path) -> None:
    store = tmp_path / "home" / "models"
    folder = pull(hub[0], store)
    (model,) = installed(store)
    assert (model.name, model.folder, model.manifest["source"]) == (FOLDER, folder, NAME)
    assert model.manifest == json.loads((folder / "dray-model.json").read_text())
    assert RemoteFile("a", 1) == RemoteFile("a", 1, "", "")
