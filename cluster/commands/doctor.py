"""`dray doctor`."""

from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from cluster.commands.console import AsJson, Config, StateDir, err, load_settings, out, print_json
from cluster.commands.lifecycle import Cores, Model, Replicas, Source, Weight
from cluster.doctor import Finding, examine
from cluster.units import plural

_COLOURS = {"passed": "green", "warning": "yellow", "failed": "red"}


def doctor(
    model: Model = None,
    weight: Weight = None,
    source: Source = None,
    replicas: Replicas = None,
    cores: Cores = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not contact model hubs.")] = False,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Check whether `dray up` would work here with these options, and suggest fixes. Changes nothing.

    Exit code 1: a check failed. Warnings do not count.
    """
    settings = load_settings(
        config,
        model__source=model,
        model__weight=weight,
        hub=source,
        model__replicas=replicas,
        model__cores_per_replica=cores,
        state_dir=state_dir,
    ).settings
    findings: list[Finding] = []
    advised: set[str] = set()
    with err.status("checking") as status:
        for finding in examine(settings, offline=offline):
            findings.append(finding)
            status.update(f"checking: {finding.check} done")
            if not as_json:
                _print(finding, advised)
    counts = Counter(finding.level for finding in findings)
    if as_json:
        print_json({"ok": not counts["failed"], "checks": [asdict(finding) for finding in findings]})
    else:
        warnings = plural(counts["warning"], "warning")
        out.print(f"{counts['passed']} passed, {warnings}, {counts['failed']} failed", highlight=False)
    if counts["failed"]:
        raise typer.Exit(1)


def _print(finding: Finding, advised: set[str]) -> None:
    """Prints a finding, without the advice that an earlier one gave. advised: gets the advice of this one."""
    level = f"[{_COLOURS[finding.level]}]{finding.level:7}[/]"
    message = finding.message
    if finding.level != "passed":
        first, *rest = message.split("; ")
        message = "; ".join([first, *(part for part in rest if part not in advised)])
        advised.update(rest)
    out.print(f"{level} {finding.check:13} {escape(message)}", highlight=False, soft_wrap=True)
