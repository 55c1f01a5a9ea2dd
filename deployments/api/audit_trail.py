"""What a router writes of who did what: into the audit log, its own log, and to an OpenTelemetry collector."""

import asyncio
import logging
from pathlib import Path

from cluster.audit import AuditLog, Value
from cluster.audit_export import AuditExport

log = logging.getLogger("dray.audit")


class AuditTrail:
    """The audit log as one router writes it."""

    def __init__(self, folder: Path, service: str, instance: str) -> None:
        """folder: of the audit log. service, instance: as the collector is to know this router."""
        self._log = AuditLog(folder)
        self._export = AuditExport(service, instance)

    async def record(self, actor: str, action: str, target: str, **details: Value) -> None:
        """Writes what an actor did. A full disk does not undo it."""
        log.info("audit", extra={"actor": actor, "action": action, "target": target, "details": details})
        try:
            entry = await asyncio.to_thread(self._log.record, actor, action, target, details)
        except OSError:
            log.exception("an entry is missing in the audit log", extra={"action": action, "target": target})
        else:
            self._export.send(entry)

    def close(self) -> None:
        """Sends to the collector what is left, for at most 2 s."""
        self._export.close()
