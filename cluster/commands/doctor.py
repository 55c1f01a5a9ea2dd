"""`dray doctor`."""

from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from cluster.commands.console import AsJson, Config, StateDir, err, out, settled
from cluster.commands.lifecycle import Cores, Model, Replicas, Source, Weight
from cluster.doctor import Finding, examine

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    model: Model = None,
    weight: Weight = None,
    source: Source = None,
    replicas: Replicas = None,
    cores: Cores = None,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no model hub.")] = False,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Look whether `dray up` with the same options would work here, and say what to mend. It changes nothing.

    Exit code 1: something fails. Warnings alone are no failure.
    """
    settings = settled(
        config,
        model__source=model,
        model__weight=weight,
        hub=source,
        model__replicas=replicas,
        model__cores_per_replica=cores,
        state_dir=state_dir,
    ).settings
    found: list[Finding] = []
    with err.status("looking") as status:
        for finding in examine(settings, offline=offline):
            found.append(finding)
            status.update(f"looking: after {finding.check}")
            if not as_json:
                _print(finding)
    counts = Counter(finding.level for finding in found)
    if as_json:
        out.print_json(data={"ok": not counts["fail"], "checks": [asdict(finding) for finding in found]})
    else:
        out.print(f"{counts['ok']} ok, {counts['warn']} to know, {counts['fail']} to mend", highlight=False)
    if counts["fail"]:
        raise typer.Exit(1)


def _print(finding: Finding) -> None:
    level = f"[{_COLOURS[finding.level]}]{finding.level:4}[/]"
    out.print(f"{level} {finding.check:13} {escape(finding.message)}", highlight=False, soft_wrap=True)
