"""`dray k8s`: generates manifests from the settings, and checks whether a node can run engines."""

import os
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.console import AsJson, err, fail, load_settings, out, print_json
from cluster.kubernetes.chart import write_chart
from cluster.kubernetes.manifests import in_checkout, manifests_folder
from cluster.kubernetes.render import kustomization, render
from cluster.kubernetes.sizes import MODEL_WAIT_S, KubernetesError
from cluster.launch.preflight import LaunchError, check_processor
from cluster.models.folder import missing_files

app = typer.Typer(
    help="Generate Kubernetes manifests, and check nodes.",
    no_args_is_help=True,
    epilog="Example: dray k8s render --settings dray.yaml --out ours",
)

_HOW = "render into an empty folder to see how a new one does"
_LOOK_S = 2.0
"""Seconds between two looks at a folder."""


@app.command("render", epilog="Example: dray k8s render --settings dray.yaml --out k8s/overlays/ours")
def render_overlay(
    target: Annotated[Path, typer.Option("--out", help="Folder of the overlay; generated files in it are replaced.")],
    config: Annotated[Path | None, typer.Option("--settings", help="Settings file.")] = None,
    image: Annotated[str | None, typer.Option(help="Container image of Dray; overrides the setting.")] = None,
    base: Annotated[
        Path | None, typer.Option(help="The folder k8s/base of Dray's repository.", show_default="that of this Dray")
    ] = None,
) -> None:
    """Write a Kustomize overlay with the Serve config, worker groups, resources and timeouts of the settings.

    An existing kustomization.yaml is kept, and so is the size of a claim that would shrink. Without a checkout, the
    overlay gets copies of base/ and components/.
    """
    settings = load_settings(config, kubernetes__image=image).settings
    try:
        source = base or manifests_folder() / "base"
        previous = {path.name: path.read_text() for path in target.glob("*.yaml")}
        files = render(settings, source, previous)
    except KubernetesError as error:
        raise fail(str(error)) from None
    secrets = os.path.relpath(source.parent / "secrets.sh")
    target.mkdir(parents=True, exist_ok=True)
    if base is None and not in_checkout():
        for name in ("base", "components"):
            shutil.copytree(source.parent / name, target / name, dirs_exist_ok=True)
        source = target / "base"
    if not (target / "kustomization.yaml").exists():
        path = os.path.relpath(source.resolve(), target.resolve())
        (target / "kustomization.yaml").write_text(kustomization(files, path))
    for name, text in files.items():
        (target / name).write_text(text)
    if unlisted := [name for name in files if name not in (target / "kustomization.yaml").read_text()]:
        message = f"warning: {target}/kustomization.yaml does not list {', '.join(unlisted)}, which it needs; {_HOW}"
        err.print(message, highlight=False, soft_wrap=True)
    namespace = settings.kubernetes.namespace
    steps = (
        f"{target}: {', '.join(files)}",
        f"before the first time: kubectl create namespace {namespace} --dry-run=client -o yaml | kubectl apply -f -",
        f"                       {secrets} {namespace} | kubectl apply -f -",
        f"then:                  kubectl apply -k {target}",
    )
    out.print("\n".join(steps), highlight=False, soft_wrap=True)


@app.command("chart", epilog="Example: dray k8s chart --settings dray.yaml --out chart && helm package chart")
def render_chart(
    target: Annotated[Path, typer.Option("--out", help="Folder of the chart; its templates are replaced.")],
    config: Annotated[Path | None, typer.Option("--settings", help="Settings file.")] = None,
) -> None:
    """Write a Helm chart with the same manifests, and values for what differs between clusters. Needs kubectl."""
    settings = load_settings(config).settings
    try:
        written = write_chart(settings, manifests_folder(), target)
    except KubernetesError as error:
        raise fail(str(error)) from None
    out.print(f"{target}: {len(written)} files; helm install dray {target}", highlight=False, soft_wrap=True)


@app.command("check-node", epilog="Example: dray k8s check-node")
def check_node(as_json: AsJson = False) -> None:
    """Check whether this machine's processor can run engines. Pods run this first; `dray doctor` checks the rest."""
    try:
        processor = check_processor()
    except LaunchError as error:
        raise fail(str(error)) from None
    if as_json:
        print_json({"processor": processor})
    else:
        out.print(f"processor: {processor}", highlight=False)


@app.command("wait-models", epilog="Example: dray k8s wait-models /models/qwen3-0.6b-int8 --timeout 600")
def wait_models(
    folders: Annotated[list[Path], typer.Argument(help="Model folders.")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait for all of them.")] = MODEL_WAIT_S,
) -> None:
    """Wait until these model folders are complete. Pods of routers and engines run this before they join Ray."""
    deadline, shown = time.monotonic() + timeout, ""
    while lacking := {folder: missing for folder in folders if (missing := missing_files(folder))}:
        folder, missing = next(iter(lacking.items()))
        if time.monotonic() >= deadline:
            raise fail(
                f"no complete model in {folder} after {timeout:g} s: it lacks {', '.join(missing)}. See the Job "
                "dray-models-… that fetches models, or put the folder into the volume of models"
            )
        if shown != (shown := f"waiting for {folder}, which lacks {', '.join(missing)}"):
            out.print(shown, highlight=False, soft_wrap=True)
        time.sleep(min(_LOOK_S, max(0.0, deadline - time.monotonic())))
