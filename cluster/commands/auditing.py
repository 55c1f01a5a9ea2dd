"""`dray audit`, and how commands write what they did into the audit log."""

import os
import pwd
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import typer

from cluster.audit import AUDIT_FOLDER, AuditLog, Value
from cluster.audit_export import AuditExport
from cluster.commands.console import AsJson, Config, StateDir, err, fail, load_settings, out, print_json
from cluster.launch.state import read_record
from cluster.private_files import NotPrivate
from cluster.records.team_records import Quota
from cluster.units import plural

app = typer.Typer(help="Check the log of who changed what.", no_args_is_help=True, epilog="Example: dray audit verify")

_MAX_SHOWN = 20


def audit(config: Path | None, state_dir: Path | None, action: str, target: str = "", **details: Value) -> None:
    """Records what this command did. A log that cannot be written does not undo it: a warning says so."""
    if by := os.environ.get("SUDO_USER"):
        details["sudo_user"] = by
    try:
        entry = _log(config, state_dir).record(f"user:{user_name()}", action, target, details)
    except OSError as error:
        err.print(f"warning: this is not in the audit log: {error}", style="yellow", highlight=False, soft_wrap=True)
        return
    export = AuditExport("dray", f"{os.uname().nodename}-{os.getpid()}")
    export.send(entry)
    export.close()


@app.command(epilog="Example: dray audit verify --json")
def verify(as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """Check that no entry of the audit log was removed, changed or moved, and say where. Exit code 1: one was."""
    try:
        found = _log(config, state_dir).verify()
    except OSError as error:
        raise fail(f"the audit log cannot be read: {error}") from None
    if as_json:
        faults = [{"file": fault.file, "line": fault.line, "reason": fault.reason} for fault in found.faults]
        print_json({"entries": found.entries, "faults": faults})
    else:
        out.print(f"{plural(found.entries, 'line')} read, {plural(len(found.faults), 'fault')} found", highlight=False)
        for fault in found.faults[:_MAX_SHOWN]:
            out.print(f"  {fault.file}, line {fault.line}: {fault.reason}", highlight=False, markup=False)
        if len(found.faults) > _MAX_SHOWN:
            out.print(f"  and {len(found.faults) - _MAX_SHOWN} more", highlight=False)
    if found.faults:
        raise typer.Exit(1)


def _log(config: Path | None, state_dir: Path | None) -> AuditLog:
    """The log of the running Dray, which may have other settings than this command; else that of the settings."""
    settings = load_settings(config, state_dir=state_dir).settings
    with suppress(NotPrivate):
        record = read_record(settings.state_dir)
        if record is not None and "data_dir" in record.settings:
            return AuditLog(Path(record.settings["data_dir"]) / AUDIT_FOLDER)
    return AuditLog(settings.data_dir / AUDIT_FOLDER)


def team_fields(changes: dict[str, Any], quota: Quota) -> dict[str, Value]:
    """A team's fields as the audit log has them."""
    limits = {f"quota.{name}": limit for name, limit in msgspec.structs.asdict(quota).items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in changes.items()} | limits


def user_name() -> str:
    """The user of this machine who runs the command."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user may have no name
        return str(os.geteuid())
