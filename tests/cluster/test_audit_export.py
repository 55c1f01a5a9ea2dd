"""Entries of the audit log reach an OpenTelemetry collector, word for word; without one, or with a dead one, nothing
waits."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.audit import AUDIT_FOLDER, AuditLog, Value
from cluster.audit_export import AuditExport
from cluster.commands.auditing import audit
from cluster.configuration import variable
from cluster.otlp import CLOSE_S
from cluster.ports import free_port
from tests.collector import collector

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def test_an_entry_reaches_the_collector_as_the_line_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(tmp_path)
    with collector() as (received, _):
        monkeypatch.setenv(ENDPOINT, received.url)
        export = AuditExport("dray-router", "r1")
        details: dict[str, Value] = {"weight": 2.0, "models": ["a", "b"], "note": None, "on": True}
        export.send(log.record("key:k1", "team.change", "客服", details))
        export.send(log.record("user:ann", "deploy", "", {}))
        export.close()
        first, second = received.logs
    assert [first.body, second.body] == (tmp_path / "audit.jsonl").read_text().splitlines()
    assert (first.service, first.process, first.event) == ("dray-router", "r1", "dray.audit")
    assert time.time() - first.at < 60
    assert first.attributes == {
        "dray.audit.number": 1,
        "dray.audit.actor": "key:k1",
        "dray.audit.action": "team.change",
        "dray.audit.target": "客服",
        "dray.audit.details.weight": 2.0,
        "dray.audit.details.models": ["a", "b"],
        "dray.audit.details.on": True,
    }


def test_a_command_exports_what_it_did_before_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable("data_dir"), str(tmp_path))
    with collector() as (received, _):
        monkeypatch.setenv(ENDPOINT, received.url)
        audit(None, tmp_path / "s", "key.create", "k1", team="support")
        [record] = received.logs
    assert record.body == (tmp_path / AUDIT_FOLDER / "audit.jsonl").read_text().strip()
    assert record.attributes["dray.audit.actor"].startswith("user:")


def test_nothing_waits_for_a_dead_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{free_port()}")
    export = AuditExport("dray", "1")
    started = time.monotonic()
    export.send(AuditLog(tmp_path).record("user:ann", "deploy", "", {}))
    export.close()
    assert time.monotonic() - started < CLOSE_S + 5
    assert AuditLog(tmp_path).verify().entries == 1


@pytest.mark.parametrize("variables", [{}, {ENDPOINT: "http://c", "OTEL_LOGS_EXPORTER": "none"}])
def test_without_a_collector_nothing_is_imported_for_it(variables: dict[str, str]) -> None:
    script = (
        f"import os, sys; os.environ.update({variables!r}); from cluster.audit_export import AuditExport; "
        "AuditExport('dray', '1').close(); sys.exit('opentelemetry' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
