"""Finds the manifests that Dray renders from, in the checkout or where pip has put them, and runs Kustomize."""

import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import yaml

from cluster.kubernetes.sizes import KubernetesError

_INSTALLED = "share/dray/k8s/base/rayservice.yaml"
_CHECKOUT = Path(__file__).parents[2] / "k8s"


def manifests_folder() -> Path:
    """The folder k8s. Raises KubernetesError."""
    if _CHECKOUT.is_dir():
        return _CHECKOUT
    try:
        installed = next((file for file in files("dray") or () if str(file).endswith(_INSTALLED)), None)
    except PackageNotFoundError:
        installed = None
    if installed is None:
        raise KubernetesError("this installation has no manifests: install Dray's wheel, or name a checkout's k8s/base")
    return Path(str(installed.locate())).resolve().parents[1]


def in_checkout() -> bool:
    """Whether `manifests_folder` is a checkout's, which an overlay may refer to by a relative path."""
    return _CHECKOUT.is_dir()


def kustomize(folder: Path) -> list[dict[str, Any]]:
    """The objects of a Kustomize folder. Raises KubernetesError."""
    for command in (["kubectl", "kustomize"], ["kustomize", "build"]):
        if shutil.which(command[0]):
            break
    else:
        raise KubernetesError("needs kubectl or kustomize, which combines the manifests: install one of them")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KubernetesError(f"{command[0]} could not combine the manifests: {done.stderr.strip()}")
    return list(yaml.safe_load_all(done.stdout))
