"""Rendered manifests: running kustomize, and finding objects and values in its output."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.configuration import load
from cluster.settings import Settings

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())

Document = dict[str, Any]


def kustomize(folder: Path) -> list[Document]:
    """The objects that `kubectl apply -k` would send."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl; rendering needs no cluster")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))


def settings_of(overlay: str) -> Settings:
    return load(config=K8S / "overlays" / overlay / "dray.yaml").settings


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


def rayservice(documents: list[Document]) -> Document:
    (service,) = of_kind(documents, "RayService")
    return service


def cluster_of(documents: list[Document]) -> Document:
    cluster: Document = rayservice(documents)["spec"]["rayClusterConfig"]
    return cluster


def pod_templates(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """Every pod template, with a name for it."""
    for document in documents:
        kind, name = document["kind"], document["metadata"]["name"]
        if kind in ("StatefulSet", "Job"):
            yield f"{kind}/{name}", document["spec"]["template"]
        if kind == "RayService":
            cluster = document["spec"]["rayClusterConfig"]
            yield "head", cluster["headGroupSpec"]["template"]
            for group in cluster["workerGroupSpecs"]:
                yield group["groupName"], group["template"]


def containers(template: Document) -> list[Document]:
    spec = template["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]


def environment(container: Document) -> dict[str, str]:
    """Its variables with a plain value, by name."""
    return {entry["name"]: entry["value"] for entry in container.get("env", ()) if "value" in entry}


def cpus(text: str) -> float:
    """The number of CPUs of a Kubernetes quantity, such as 500m."""
    return int(text[:-1]) / 1000 if text.endswith("m") else float(text)


def mebibytes(text: str) -> int:
    """The MiB of a Kubernetes quantity, such as 2Gi."""
    number = int(text.rstrip("MGi"))
    return number * 1024 if text.endswith("Gi") else number
