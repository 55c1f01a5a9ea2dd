"""The package: one version everywhere, and (slow) a wheel that works without the checkout."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cluster.models.folder import BUNDLED_FOLDER
from cluster.settings import Settings

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_is_that_of_pyproject() -> None:
    written = PROJECT["project"]["version"]
    assert version("dray") == written, "install Dray again: pip install --editable ."
    assert Settings().kubernetes.image == f"dray:{written}"
    files = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "k8s").rglob("*.yaml"), ROOT / "k8s" / "Dockerfile"]
    tags = {(file, tag) for file in files for tag in re.findall(r"\bdray:(\d+\.\d+\.\d+)", file.read_text())}
    assert len(tags) > 5
    assert {(file, tag) for file, tag in tags if tag != written} == set()
    assert re.search(rf"^## .*\b{re.escape(written)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_images_constraints_fit_pyproject() -> None:
    text = (ROOT / "constraints.txt").read_text()
    locked = re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE)
    assert len(locked) > 100 and text.count("--hash=sha256:") > len(locked)
    versions = dict(locked)
    for line in PROJECT["project"]["dependencies"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(versions[requirement.name]), f"{line}: make constraints"
    assert not versions.keys() & {"torch", "gradio", "pytest"}


def test_make_up_installs_what_the_pages_and_the_planner_need() -> None:
    command = ["make", "--dry-run", "--always-make", ".venv/.serving"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    [extras] = re.findall(r"pip install --editable '\.\[([\w,]+)\]'", printed)
    assert extras.split(",") == ["page", "plan"]
    assert set(extras.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with a wheel of Dray, whose dependencies come from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "cluster", "deployments"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True)
    shutil.rmtree(source)
    (wheel,) = folder.glob("dray-*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    # A plain path: .pth files in it, such as that of an editable Dray, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


def run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the environment's Python outside the checkout."""
    command = [str(python), "-I", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


@pytest.mark.slow
def test_a_wheel_has_the_bundled_model(installed: Path, tmp_path: Path) -> None:
    code = """
from cluster.models.folder import open_model
from cluster.settings import ModelSettings, default_models_dir
print(open_model(ModelSettings(), default_models_dir()).folder)
"""
    done = run(installed, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder.is_relative_to(installed.parents[1])
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert files == {file.name: file.read_bytes() for file in BUNDLED_FOLDER.iterdir()}


@pytest.mark.slow
def test_a_wheel_has_the_licence_the_pages_and_the_types(installed: Path) -> None:
    (packages,) = installed.parents[1].glob("lib/python*/site-packages")
    (licence,) = packages.glob("dray-*.dist-info/licenses/LICENSE")
    assert licence.read_text() == (ROOT / "LICENSE").read_text()
    for top in ("cluster", "deployments"):
        files = {file.relative_to(ROOT / top) for file in (ROOT / top).rglob("*") if file.is_file()}
        files = {file for file in files if "__pycache__" not in file.parts}
        shipped = {file.relative_to(packages / top) for file in (packages / top).rglob("*") if file.is_file()}
        assert files - shipped == set()


@pytest.mark.slow
def test_manifests_are_rendered_from_a_wheel_with_the_repositorys_base(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "dray.yaml").write_text("model: {cores_per_replica: 2}\n")
    render = ["-m", "cluster.cli", "k8s", "render", "--settings", "dray.yaml", "--out", "out"]
    refused = run(installed, tmp_path, *render)
    assert refused.returncode == 1
    assert "is not the folder k8s/base of Dray's repository" in refused.stderr
    done = run(installed, tmp_path, *render, "--base", str(ROOT / "k8s" / "base"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "rayservice.yaml").is_file()


def make(folder: Path, *pip: str) -> subprocess.CompletedProcess[str]:
    """Runs a target that has this in pip's place, with the rules of the Makefile."""
    (folder / "pip").write_text("\n".join(["#!/bin/sh", *pip, ""]))
    (folder / "pip").chmod(0o755)
    (folder / "Makefile").write_text(f"include {ROOT / 'Makefile'}\ntried:\n\t$(call pip,./pip install)\n")
    command = ["make", "--no-print-directory", "tried"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_make_says_in_a_line_what_pip_did_and_all_of_it_only_when_it_fails(tmp_path: Path) -> None:
    warning = "echo 'WARNING: a package of others is deprecated'"
    done = make(tmp_path, "echo Collecting a", warning, "echo Successfully installed a-1 b-2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "   installed 2 packages\n", "")
    failed = make(tmp_path, "echo Collecting a", warning, "echo ERROR: no matching distribution; exit 1")
    assert failed.returncode == 2 and "no matching distribution" in failed.stdout and "deprecated" in failed.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"pip", "Makefile"}, "no log is left"
