"""Sends the entries of the audit log to an OpenTelemetry collector too, as log records.

On when the standard variables (OTEL_EXPORTER_OTLP_ENDPOINT and its kin) name a collector. The file stays the log: what
a collector misses is there, and a record's body is the file's line, so that a copy can be checked like the file.
"""

import os
from datetime import datetime
from typing import TYPE_CHECKING

from cluster.audit import Entry, line_of
from cluster.otlp import configured, end, resource, warn_of_protocol

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import LoggerProvider


class AuditExport:
    """The exporter of one process. A background thread sends records, and drops them if too many wait."""

    def __init__(self, service: str, instance: str) -> None:
        """service: its name, unless the environment gives another. instance: identifies this process."""
        self._provider: LoggerProvider | None = None
        if configured("LOGS", os.environ):
            warn_of_protocol("LOGS", os.environ)
            self._provider = _provider(service, instance)

    def send(self, entry: Entry) -> None:
        """Sends an entry, later. Does nothing without a collector."""
        if self._provider is None:
            return
        from opentelemetry._logs import SeverityNumber

        details = {f"dray.audit.details.{name}": value for name, value in entry.details.items() if value is not None}
        self._provider.get_logger("dray.audit").emit(
            timestamp=round(datetime.fromisoformat(entry.time).timestamp() * 1e9),
            severity_number=SeverityNumber.INFO,
            severity_text="INFO",
            event_name="dray.audit",
            body=line_of(entry),
            attributes={
                "dray.audit.number": entry.number,
                "dray.audit.actor": entry.actor,
                "dray.audit.action": entry.action,
                "dray.audit.target": entry.target,
                **details,
            },
        )

    def close(self) -> None:
        """Sends what is left, for at most 2 s."""
        if self._provider is not None:
            end(self._provider.shutdown)


def _provider(service: str, instance: str) -> "LoggerProvider":
    # OpenTelemetry keeps its logs below names with an underscore, although their protocol is stable.
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    # Not at exit, where it would wait for a dead collector; `AuditExport.close` bounds that wait.
    provider = LoggerProvider(resource=resource(service, instance), shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
    return provider
