"""Dray's wheel, installed outside of the checkout: it renders overlays and charts as the checkout does."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.k8s.manifests import K8S, ROOT, kustomize

PARTS, SCRIPTS = ("base", "components", "monitoring"), ("secrets.sh", "teams.sh")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prefix that the wheel is installed into, without what it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("cluster", "deployments", "k8s"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, source], check=True)
    (wheel,) = folder.glob("dray-*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--ignore-installed", "--prefix", folder / "prefix", wheel], check=True
    )
    return folder / "prefix"


def dray(installed: Path, folder: Path, *arguments: str) -> None:
    """Runs the installed command in a folder outside of the checkout."""
    (packages,) = installed.glob("lib/python3*/site-packages")
    code = "import cluster, sys; from cluster.cli import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(packages)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_project_lists_every_manifest() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = {
        f"{target}/{file.name}": file.read_bytes()
        for target, patterns in project["tool"]["setuptools"]["data-files"].items()
        for pattern in patterns
        for file in ROOT.glob(pattern)
    }
    wanted = {f"share/dray/k8s/{part}/{name}": data for part in PARTS for name, data in files(K8S / part).items()}
    assert listed == wanted | {f"share/dray/k8s/{name}": (K8S / name).read_bytes() for name in SCRIPTS}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_has_every_manifest(installed: Path) -> None:
    share = installed / "share" / "dray" / "k8s"
    for part in PARTS:
        assert files(share / part) == files(K8S / part), "list new folders in pyproject.toml, data-files"
    for name in SCRIPTS:
        assert (share / name).read_bytes() == (K8S / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_overlay_of_the_installed_dray_stands_alone(installed: Path, tmp_path: Path) -> None:
    settings = K8S / "overlays" / "kind" / "dray.yaml"
    (tmp_path / "dray.yaml").write_bytes(settings.read_bytes())
    dray(installed, tmp_path, "k8s", "render", "--settings", "dray.yaml", "--out", "ours")
    assert files(tmp_path / "ours" / "base") == files(K8S / "base")
    assert (tmp_path / "ours" / "rayservice.yaml").read_text() == (settings.parent / "rayservice.yaml").read_text()
    kinds = {document["kind"] for document in kustomize(tmp_path / "ours")}
    assert {"RayService", "StatefulSet", "NetworkPolicy"} <= kinds


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_chart_of_the_installed_dray_is_the_checkouts(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "dray.yaml").write_bytes((K8S / "overlays" / "production" / "dray.yaml").read_bytes())
    dray(installed, tmp_path, "k8s", "chart", "--settings", "dray.yaml", "--out", "chart")
    assert files(tmp_path / "chart") == files(K8S / "chart")
