"""`dray models pull` from stand-ins of both hubs: complete, verified and atomic, whatever fails.

Most commands are forked from a process that has imported the hubs' clients; the first pull of each hub, one onto a full
disk and `dray up` run in new interpreters.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.models.fetch import exclusive
from cluster.models.folder import BUNDLED_FOLDER
from tests.conftest import wait_for
from tests.forked import ForkedCommands
from tests.models.hubs import COMMIT, TOKEN, Repository, StandIn, stand_in

R1 = "deepseek-r1-distill-qwen-1.5b"
R1_IR = "OpenVINO/DeepSeek-R1-Distill-Qwen-1.5B-int8-ov"
BIN = "openvino_model.bin"
LOCKS = Path("/proc/locks")
VARIABLES = {"huggingface": "HF_ENDPOINT", "modelscope": "MODELSCOPE_ENDPOINT"}
TOKENS = {"huggingface": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}


@dataclass
class Machine:
    """A user's machine: a home folder, the hub that it reaches, and what commands are forked from."""

    home: Path
    hub: str
    server: StandIn
    commands: ForkedCommands

    @property
    def store(self) -> Path:
        return self.home / "models"

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("DRAY_", "HF_"))}
        return clean | {
            "HOME": str(self.home),
            "DRAY_STATE_DIR": str(self.home / "s"),
            "DRAY_MODELS_DIR": str(self.store),
            "DRAY_HUB": self.hub,
            VARIABLES[self.hub]: self.server.url,
            "COLUMNS": "200",
        }

    def dray(self, *arguments: str, extra: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Runs `dray models ...`."""
        return self.commands.run("models", *arguments, env=self.environment | (extra or {}), timeout=240)

    def new_dray(self, *arguments: str, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
        """Runs `dray ...` in a new interpreter. before: called in its process."""
        return subprocess.run(
            [sys.executable, "-m", "cluster.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=before,
        )

    def refused(self, *arguments: str, extra: dict[str, str] | None = None) -> str:
        """Runs a command that must fail with one line of error and leave no model; returns the line."""
        done = self.dray(*arguments, extra=extra)
        assert done.returncode == 1, done.stdout
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and done.stderr.strip().endswith(errors[0]) and "Traceback" not in done.stderr
        assert self.models() == []
        return errors[0]

    def models(self) -> list[str]:
        return sorted(folder.name for folder in self.store.glob("[!.]*")) if self.store.is_dir() else []


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedCommands]:
    clients = ("huggingface_hub.file_download", "huggingface_hub.hf_api", "modelscope_hub.api")
    # The clients read both when they are imported: where a user's token is, and what `dray` sets before.
    environment = {"HOME": str(tmp_path_factory.mktemp("home")), "TQDM_DISABLE": "1"}
    forking = ForkedCommands(clients, environment)
    yield forking
    forking.close()


@pytest.fixture(params=["huggingface", "modelscope"])
def machine(request: pytest.FixtureRequest, tmp_path: Path, commands: ForkedCommands) -> Iterator[Machine]:
    with stand_in(request.param) as server:
        yield Machine(tmp_path, request.param, server, commands)


def is_bundled_model(folder: Path) -> bool:
    """Whether a folder holds an exact copy of the bundled model."""
    return all(
        (folder / file.name).read_bytes() == file.read_bytes()
        for file in BUNDLED_FOLDER.iterdir()
        if file.name != "dray-model.json"
    )


def test_a_catalog_name_fetches_the_ready_made_model(machine: Machine) -> None:
    machine.server.repositories[R1_IR] = Repository.of(BUNDLED_FOLDER)
    machine.server.repositories[R1_IR].files["README.md"] = b"not needed"
    done = machine.new_dray("models", "pull", R1, "--keep-weights")
    assert done.returncode == 0, done.stderr
    folder = machine.store / f"{R1}-int8"
    assert machine.models() == [folder.name] and is_bundled_model(folder)
    assert not (folder / "README.md").exists() and not (folder / ".cache").exists()
    manifest = json.loads((folder / "dray-model.json").read_text())
    assert (manifest["source"], manifest["hub"]) == (R1_IR, machine.hub)
    assert manifest["revision"] == (COMMIT if machine.hub == "huggingface" else "master")
    listed = json.loads(machine.dray("list", "--json").stdout)
    assert [model["name"] for model in listed["installed"]] == [folder.name]
    requests = len(machine.server.asked)
    assert machine.dray("pull", R1, "--keep-weights").returncode == 0
    assert len(machine.server.asked) == requests, "an installed model is not requested again"
    assert machine.dray("remove", R1).returncode == 0
    assert machine.models() == []


def test_int8_weights_are_converted_unless_they_are_to_be_kept(machine: Machine) -> None:
    machine.server.repositories[R1_IR] = Repository.of(BUNDLED_FOLDER)
    done = machine.dray("pull", R1)
    assert done.returncode == 0, done.stderr
    folder = machine.store / f"{R1}-int8"
    assert machine.models() == [folder.name] and [path.name for path in (machine.store / ".partial").iterdir()] == [
        f"{folder.name}.lock"
    ]
    manifest = json.loads((folder / "dray-model.json").read_text())
    assert (manifest["source"], manifest["hub"]) == (R1_IR, machine.hub)
    assert manifest["weights"] == "int8-symmetric-smoothed" and manifest["conversion"]["tokens"] > 3000


def test_any_hub_id_works(machine: Machine) -> None:
    machine.server.repositories["someone/Their-Model"] = Repository.of(BUNDLED_FOLDER)
    assert machine.dray("pull", "someone/Their-Model", "--keep-weights").returncode == 0
    assert machine.models() == ["someone--their-model-int8"]


def test_an_embedding_model_comes_with_its_pooling(machine: Machine) -> None:
    repository = Repository.of(BUNDLED_FOLDER)
    pooling = b'{"pooling_mode_cls_token": true}'
    repository.files |= {"1_Pooling/config.json": pooling, "onnx/config.json": b"{}"}
    machine.server.repositories["someone/Embedder"] = repository
    done = machine.dray("pull", "someone/Embedder")
    assert done.returncode == 0, done.stderr
    assert "task: embed" in done.stdout
    folder = machine.store / "someone--embedder-int8"
    assert (folder / "1_Pooling" / "config.json").read_bytes() == pooling and not (folder / "onnx").exists()


def test_an_interrupted_download_resumes(machine: Machine) -> None:
    repository = machine.server.repositories[R1_IR] = Repository.of(BUNDLED_FOLDER)
    repository.files[BIN] = os.urandom(48 * 2**20)  # the clients write up to 10 MiB at once
    repository.dropped[BIN] = 2
    done = machine.dray("pull", R1, "--keep-weights")
    assert done.returncode == 0, done.stderr
    assert (machine.store / f"{R1}-int8" / BIN).read_bytes() == repository.files[BIN]
    first, *later = machine.server.downloads(BIN)
    assert first == 0 and later and all(start > 0 for start in later)


def test_of_two_at_once_one_fetches_and_the_other_waits(machine: Machine) -> None:
    """As two pods of a node do."""
    machine.server.repositories[R1_IR] = Repository.of(BUNDLED_FOLDER)
    lock = machine.store / ".partial" / f"{R1}-int8.lock"
    with ThreadPoolExecutor() as pool:
        with exclusive(lock):
            assert "another process is fetching this model" in machine.refused("pull", R1)
            waiting = pool.submit(machine.dray, "pull", R1, "--wait")
            blocked = f":{lock.stat().st_ino} "
            wait_for(lambda: [line for line in LOCKS.read_text().splitlines() if "->" in line and blocked in line])
            shutil.copytree(BUNDLED_FOLDER, machine.store / f"{R1}-int8")
        assert waiting.result().returncode == 0
    assert machine.server.asked == [], "it finds what the first one has fetched"


def test_a_damaged_download_is_repeated_once(machine: Machine) -> None:
    repository = machine.server.repositories[R1_IR] = Repository.of(BUNDLED_FOLDER)
    repository.spoiled[BIN] = 1
    done = machine.dray("pull", R1, "--keep-weights")
    assert done.returncode == 0, done.stderr
    assert is_bundled_model(machine.store / f"{R1}-int8")


def test_damaged_content_is_never_installed(machine: Machine) -> None:
    repository = machine.server.repositories[R1_IR] = Repository.of(BUNDLED_FOLDER)
    repository.spoiled[BIN] = 100
    line = machine.refused("pull", R1)
    assert BIN in line
    repository.spoiled[BIN] = 0
    assert machine.dray("pull", R1, "--keep-weights").returncode == 0
    assert is_bundled_model(machine.store / f"{R1}-int8")


def test_small_files_are_verified_too(machine: Machine) -> None:
    repository = machine.server.repositories[R1_IR] = Repository.of(BUNDLED_FOLDER)
    repository.spoiled["tokenizer.json"] = 100
    assert "tokenizer.json" in machine.refused("pull", R1)


def test_too_small_a_disk_is_reported_before_the_download(machine: Machine) -> None:
    repository = machine.server.repositories[R1_IR] = Repository.of(BUNDLED_FOLDER)
    repository.listed[BIN] = 10**15
    line = machine.refused("pull", R1)
    assert "931322.6 GiB" in line and "free" in line
    assert not machine.server.downloads(f"/{BIN}") and not machine.server.downloads(f"FilePath={BIN}")


# ModelScope's client tries five times, for half a minute.
@pytest.mark.parametrize("machine", ["huggingface", pytest.param("modelscope", marks=pytest.mark.slow)], indirect=True)
def test_a_full_disk_is_one_line_of_error_and_the_next_try_resumes(machine: Machine) -> None:
    machine.server.repositories[R1_IR] = Repository.of(BUNDLED_FOLDER)

    def small_files_only() -> None:
        # A limit on file sizes makes writes fail as a full disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    done = machine.new_dray("models", "pull", R1, "--keep-weights", before=small_files_only)
    assert done.returncode == 1 and machine.models() == []
    assert "Traceback" not in done.stderr and "error: " in done.stderr
    assert machine.dray("pull", R1, "--keep-weights").returncode == 0
    assert is_bundled_model(machine.store / f"{R1}-int8")


def test_a_gated_model_needs_a_token(machine: Machine) -> None:
    machine.server.repositories[R1_IR] = Repository.of(BUNDLED_FOLDER)
    machine.server.repositories[R1_IR].gated = True
    assert TOKENS[machine.hub] in machine.refused("pull", R1_IR)
    assert machine.dray("pull", R1_IR, "--keep-weights", extra={TOKENS[machine.hub]: TOKEN}).returncode == 0
    assert machine.models() == ["openvino--deepseek-r1-distill-qwen-1.5b-int8-ov"]


def test_missing_models_and_hubs_are_reported(machine: Machine) -> None:
    assert "does not exist" in machine.refused("pull", "OpenVINO/nothing-int8-ov")
    assert "no Hub id" in machine.refused("pull", "no-such-name")
    unreachable = {VARIABLES[machine.hub]: "http://127.0.0.1:9"}
    line = machine.refused("pull", R1, extra=unreachable)
    assert "http://127.0.0.1:9" in line and "--source modelscope" in line and "HF_ENDPOINT" in line


def test_up_with_a_model_that_cannot_be_fetched_leaves_nothing(machine: Machine) -> None:
    done = machine.new_dray("up", "--model", "OpenVINO/nothing-int8-ov", "--source", machine.hub)
    assert done.returncode == 1 and "does not exist" in done.stderr
    assert machine.models() == [] and not (machine.home / "s").exists()


def test_show_and_remove_refuse_unknown_models(machine: Machine) -> None:
    output = machine.dray("show", R1).stdout
    assert "0.6" in output and "0.95" in output and "MIT" in output and "no system prompt" in output
    assert "not in the catalog" in machine.refused("show", "nothing")
    assert "not on this machine" in machine.refused("remove", R1)
    assert "deletes only" in machine.refused("remove", str(BUNDLED_FOLDER))
