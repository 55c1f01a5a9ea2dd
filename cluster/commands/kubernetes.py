"""`dray k8s`: generates manifests from the settings, and checks whether a node can run engines."""

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.console import AsJson, fail, load_settings, out
from cluster.kubernetes.chart import write_chart
from cluster.kubernetes.manifests import in_checkout, manifests_folder
from cluster.kubernetes.render import kustomization, render
from cluster.kubernetes.sizes import KubernetesError
from cluster.launch.preflight import LaunchError, check_processor

app = typer.Typer(
    help="Generate Kubernetes manifests, and check nodes.",
    no_args_is_help=True,
    epilog="Example: dray k8s render --settings dray.yaml --out ours",
)


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

    An existing kustomization.yaml is kept. Without a checkout, the overlay gets copies of base/ and components/.
    """
    settings = load_settings(config, kubernetes__image=image).settings
    try:
        source = base or manifests_folder() / "base"
        files = render(settings, source)
    except KubernetesError as error:
        raise fail(str(error)) from None
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
    out.print(f"{target}: {', '.join(files)}; kubectl apply -k {target}", highlight=False, soft_wrap=True)


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
        out.print_json(data={"processor": processor})
    else:
        out.print(f"processor: {processor}", highlight=False)
