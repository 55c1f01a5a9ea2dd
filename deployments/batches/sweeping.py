"""Removes files that have expired, and what routers that died have left behind."""

import asyncio
import logging
import time
from contextlib import suppress

from cluster.records.batches import PARTS, SWEEPING, Part
from deployments.batches.batch_store import BatchStore
from deployments.batches.file_store import FileStore
from deployments.common.errors import ApiError
from deployments.common.redis import RedisStore, RedisUnavailable
from deployments.tenancy.auth import TEAM, Authenticator

log = logging.getLogger("dray.batches")

_INTERVAL_S = 600
_ORPHANED_S = 86_400


class Sweeper:
    """One router's; of all routers, one at a time sweeps."""

    def __init__(self, store: RedisStore, batches: BatchStore, files: FileStore, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._store = store
        self._batches = batches
        self._files = files
        self._unknown: dict[str, float] = {}
        """When objects were first seen that nothing refers to: they may be on the way."""

    async def sweep_forever(self) -> None:
        """Sweeps until cancelled."""
        while True:
            with suppress(RedisUnavailable, OSError, ApiError):
                if await self._store.execute("SET", SWEEPING, "1", "NX", "EX", _INTERVAL_S - 1):
                    await self.sweep()
            await asyncio.sleep(_INTERVAL_S)

    async def sweep(self) -> None:
        """Removes what has expired, and the files of teams that were removed; no file that a batch still reads.

        Raises RedisUnavailable, OSError, and ApiError 503 until teams are loaded.
        """
        open_batches = await self._batches.open()
        in_use, known = {batch.input_file_id for batch in open_batches}, set[str]()
        for owner in await self._batches.owners():
            gone = await self._files.of(owner, expired=True)
            if owner.startswith(TEAM):
                files = await self._files.of(owner)
                gone += [file for file in files if self._authenticator.caller_of(owner, file.created_at) is None]
            for record in gone:
                if record.id not in in_use:
                    await self._files.remove(owner, record.id)
            for expired in (False, True):
                known |= {record.object_name for record in await self._files.of(owner, expired=expired)}
        for batch in open_batches:
            known |= {Part.decode(text).name for text in (await self._batches.parts(batch.id)).values()}
        objects, unknown, now = self._files.objects, list[str](), time.time()
        for folder in ("files", PARTS):
            unknown += [name for name in await asyncio.to_thread(objects.names, folder) if name not in known]
        self._unknown = {name: self._unknown.get(name, now) for name in unknown}
        for name, seen in self._unknown.items():
            if now - seen > _ORPHANED_S:
                log.info("removing an object that nothing refers to", extra={"object": name})
                await asyncio.to_thread(objects.remove, name)
