"""The image: its Dockerfile, and (slow) that the packages it installs can serve without torch or a compiler."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cluster.cli import app
from cluster.kubernetes.pods import HAPROXY
from cluster.launch.preflight import LaunchError, check_processor
from cluster.models.folder import BUNDLED_FOLDER
from cluster.settings import Settings
from tests.k8s.manifests import K8S, ROOT, Document, containers, kustomize, pod_templates

DOCKERFILE = K8S / "Dockerfile"
ENVIRONMENT = "/opt/dray"


def stages() -> dict[str, list[str]]:
    """The instructions of each stage, by its name: with continued lines joined, and without comments."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("FROM "):
            stages[line.split()[-1]] = [line]
        elif stages:
            stages[list(stages)[-1]].append(" ".join(line.split()))
    return stages


def test_hadolint_accepts_the_dockerfile() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_serving_image_is_the_last_stage_and_slim() -> None:
    names = list(stages())
    assert names[-1] == "serve"
    serve = stages()["base"] + stages()["serve"]
    assert not [line for line in serve if "pip" in line or "apt-get" in line]
    assert [line for line in serve if line.startswith("COPY --from=")] == [
        f"COPY --from=build {ENVIRONMENT} {ENVIRONMENT}"
    ]
    assert "export" not in " ".join(stages()["build"])


def test_nothing_runs_as_root_and_pods_run_as_the_images_user() -> None:
    for name in ("serve", "export"):
        assert "USER 10001:10001" in stages()[name]
    for name, template in pod_templates(kustomize(K8S / "overlays" / "kind")):
        if not name.startswith("StatefulSet/"):
            security = template["spec"]["securityContext"]
            assert f"USER {security['runAsUser']}:{security['runAsGroup']}" in stages()["serve"]


def test_the_image_and_the_code_agree() -> None:
    serve = stages()["serve"]
    assert Path(HAPROXY).is_relative_to(ENVIRONMENT)
    assert f"EXPOSE {Settings().port}" in serve
    torch = re.search(r"^TORCH \?= (\S+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert torch is not None
    assert f"ARG TORCH={torch[1]}" in stages()["build-export"]
    assert BUNDLED_FOLDER.is_relative_to(ROOT / "cluster")
    assert "COPY cluster cluster" in stages()["build"]
    ignored = (K8S / "Dockerfile.dockerignore").read_text().splitlines()
    for stage in stages().values():
        for line in stage:
            if line.startswith("COPY ") and "--from" not in line:
                assert all(f"!{source}" in ignored for source in line.split()[1:-1]), line


def test_both_architectures_are_built_with_sbom_and_provenance_from_one_base() -> None:
    bake = json.loads((K8S / "docker-bake.json").read_text())
    common, serve = bake["target"]["common"], bake["target"]["serve"]
    assert serve["platforms"] == ["linux/amd64", "linux/arm64"]
    assert common["attest"] == ["type=sbom", "type=provenance,mode=max"]
    base = bake["variable"]["PYTHON_IMAGE"]["default"]
    assert f"ARG PYTHON_IMAGE={base}" in DOCKERFILE.read_text()
    froms = [stage[0] for stage in stages().values()]
    assert [line for line in froms if not re.match(r"FROM (\$\{PYTHON_IMAGE\}|build|base) AS ", line)] == []
    assert common["args"]["PYTHON_IMAGE"] == "${PYTHON_IMAGE}"
    for name in bake["group"]["default"]["targets"]:
        assert bake["target"][name]["target"] in stages() and bake["target"][name]["inherits"] == ["common"]


def test_published_images_are_pinned_and_signed() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "image.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    steps = workflow["jobs"]["publish"]["steps"]
    texts = [step.get("run", "") + str(step.get("with", "")) for step in steps]
    (pin,) = (index for index, text in enumerate(texts) if "k8s/pinned-base.sh" in text)
    (build,) = (index for index, text in enumerate(texts) if "k8s/docker-bake.json" in text)
    signatures = [index for index, text in enumerate(texts) if "cosign sign --yes" in text]
    assert pin < build < min(signatures)
    assert all("@$" in texts[index] for index in signatures), "a tag may have moved before it is signed"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("sha256:" + "a" * 64, "docker.io/library/python:3.11-slim-bookworm@sha256:" + "a" * 64), ("<no value>", "")],
)
def test_the_base_is_named_by_a_digest_or_not_at_all(tmp_path: Path, answer: str, expected: str) -> None:
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\necho '{answer}'\n")
    docker.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run([K8S / "pinned-base.sh"], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == expected
    assert (done.returncode == 0) == bool(expected)


DIGEST = "sha256:" + "a" * 64


def run_step(name: str, folder: Path, programs: dict[str, str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a step of the workflow as GitHub does, with these programs (as shell scripts) in place of the real ones.

    Each call of a program is a line of the file `calls`.
    """
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "image.yml").read_text())
    assert workflow["defaults"]["run"]["shell"] == "bash"
    (script,) = (step["run"] for step in workflow["jobs"]["publish"]["steps"] if step.get("name") == name)
    for program, body in programs.items():
        (folder / program).write_text(f'#!/bin/sh\necho "{program} $*" >> {folder}/calls\n{body}\n')
        (folder / program).chmod(0o755)
    (folder / "k8s").symlink_to(K8S)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "GITHUB_ENV": str(folder / "env"), **variables}
    # https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax#defaultsrunshell
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_workflow_builds_from_a_pinned_base_or_not_at_all(tmp_path: Path) -> None:
    for folder, body in (("right", f"echo {DIGEST}"), ("wrong", "exit 1")):
        (tmp_path / folder).mkdir()
        done = run_step("Choose the base image", tmp_path / folder, {"docker": body}, GITHUB_REF_NAME="v0.2.0")
        chosen = tmp_path / folder / "env"
        if folder == "wrong":
            assert done.returncode and not chosen.exists()
        else:
            lines = chosen.read_text().splitlines()
            assert lines == ["VERSION=0.2.0", f"PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm@{DIGEST}"]


def test_images_and_their_attestations_are_signed_by_digest(tmp_path: Path) -> None:
    variables = {"REPOSITORY": "ghcr.io/o/dray", "SERVE": DIGEST, "EXPORT": DIGEST.replace("a", "b")}
    done = run_step("Sign the images by their digests", tmp_path, {"cosign": ""}, **variables)
    assert done.returncode == 0, done.stderr
    [call] = (tmp_path / "calls").read_text().splitlines()
    images = [f"ghcr.io/o/dray@{variables[name]}" for name in ("SERVE", "EXPORT")]
    # Recursively: the index's images of both architectures, and what buildx attests of them.
    assert call.split() == ["cosign", "sign", "--yes", "--recursive", *images]


@pytest.mark.parametrize(
    ("answer", "signed"),
    [
        (f"echo 'Pushed: ghcr.io/o/charts/dray:0.2.0' >&2; echo 'Digest: {DIGEST}' >&2", True),
        ("echo 'Error: denied' >&2; exit 1", False),
        ("echo 'Pushed: ghcr.io/o/charts/dray:0.2.0' >&2", False),
    ],
)
def test_the_chart_is_signed_by_its_digest_or_not_at_all(tmp_path: Path, answer: str, signed: bool) -> None:
    helm = f'case "$1" in push) {answer};; esac'
    variables = {"CHARTS": "ghcr.io/o/charts", "VERSION": "0.2.0", "GITHUB_ACTOR": "o", "PASSWORD": "p"}
    done = run_step("Push and sign the chart", tmp_path, {"helm": helm, "cosign": ""}, **variables)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert (done.returncode == 0) == signed, done.stderr
    expected = [f"cosign sign --yes ghcr.io/o/charts/dray@{DIGEST}"] if signed else []
    assert [call for call in calls if call.startswith("cosign")] == expected


@pytest.mark.parametrize(("answer", "built"), [(f"echo {DIGEST}", True), ("exit 1", False)])
def test_make_image_builds_from_a_pinned_base_or_not_at_all(tmp_path: Path, answer: str, built: bool) -> None:
    docker = tmp_path / "docker"
    docker.write_text(
        f'#!/bin/sh\ncase "$2" in imagetools) {answer};; bake) echo "from $PYTHON_IMAGE" > {tmp_path}/built;; esac\n'
    )
    docker.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["make", "image"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == built, done.stderr
    assert (tmp_path / "built").exists() == built
    if built:
        expected = f"from docker.io/library/python:3.11-slim-bookworm@{DIGEST}\n"
        assert (tmp_path / "built").read_text() == expected


def test_the_commands_of_pods_exist_in_the_image() -> None:
    """Commands of the manifests are `dray` subcommands, or modules."""
    commands = set()
    for overlay in ("kind", "several"):
        for _, template in pod_templates(kustomize(K8S / "overlays" / overlay)):
            commands |= {tuple(command) for command in map(_own_command, containers(template)) if command}
    assert ("python", "-m", "deployments.observability.exporter") in commands
    for command in commands:
        if command[0] == "dray":
            subcommand: Any = typer.main.get_command(app)
            for word in command[1:3]:
                assert word in subcommand.commands, command
                subcommand = subcommand.commands[word]
        else:
            assert command == ("python", "-m", "deployments.observability.exporter")


def _own_command(container: Document) -> list[str]:
    command: list[str] = container.get("command", [])
    # Both start a shell; the head's then runs what KubeRay generates.
    return [] if container["name"] in ("redis", "ray-head") else command


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("flags\t\t: fpu sse4_2 avx avx2\n", "avx2"),
        ("flags\t\t: fpu avx avx2 avx512f avx512_vnni\n", "avx512_vnni"),
        ("flags\t\t: avx2 avx512_vnni amx_int8\n", "amx_int8"),
        ("Features\t: fp asimd\n", "nothing to check"),
    ],
)
def test_a_supported_processor_is_described(tmp_path: Path, flags: str, message: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\nprocessor\t: 1\n{flags}")
    assert message in check_processor(tmp_path / "cpuinfo")


def test_a_processor_without_avx2_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu sse4_2 avx\n")
    with pytest.raises(LaunchError, match="AVX2"):
        check_processor(tmp_path / "cpuinfo")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_installed_packages_serve_without_torch(tmp_path: Path) -> None:
    source, target = tmp_path / "src", tmp_path / "dray"
    source.mkdir()
    for line in stages()["build"]:
        if line.startswith("COPY "):
            for name in line.split()[1:-1]:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, source / name)
    steps = "\n".join(line.removeprefix("RUN ") for line in stages()["build"] if line.startswith("RUN "))
    steps = steps.replace(ENVIRONMENT, str(target)).replace("python -m venv", f"{sys.executable} -m venv")
    subprocess.run(["bash", "-euc", steps], cwd=source, check=True)
    python = target / "bin" / "python"
    packages = next(target.glob("lib/python3*/site-packages"))
    code = """
import cluster.cli, deployments.app, deployments.observability.exporter, deployments.engine.core
from importlib.util import find_spec
from cluster.models.folder import open_model
from cluster.settings import ModelSettings, default_models_dir
print(open_model(ModelSettings(), default_models_dir()).folder)
print([name for name in ("torch", "optimum", "nncf") if find_spec(name)])
"""
    output = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    folder, unwanted = output.splitlines()[-2:]
    assert Path(folder).is_relative_to(packages)
    assert unwanted == "[]"
    assert (target / HAPROXY.relative_to(ENVIRONMENT)).is_file()
    command = [str(python), "-I", str(target / "bin" / "dray"), "k8s", "check-node"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
