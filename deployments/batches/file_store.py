"""The files of teams: what Redis holds of each, and its bytes in an object."""

import asyncio
import secrets
import time
from collections.abc import Iterable
from typing import Literal

from cluster.objects.store import ObjectStore
from cluster.records.batches import OWNERS, FileRecord, decode_file, encode_file, owner_key
from cluster.records.sealing import Unreadable
from cluster.settings import BatchSettings
from deployments.common.redis import BACKGROUND_EXTRA_S, RedisStore

Refusal = Literal["files", "bytes"]

# KEYS: the owner's files, their sizes, the owners. ARGV: id, record, bytes, owner, maximum number, and of all bytes.
_ADD = """
local sizes, sum = redis.call('HVALS', KEYS[2]), 0
for _, size in ipairs(sizes) do sum = sum + tonumber(size) end
if #sizes >= tonumber(ARGV[5]) then return 1 end
if sum + tonumber(ARGV[3]) > tonumber(ARGV[6]) then return 2 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
redis.call('SADD', KEYS[3], ARGV[4])
return 0
"""


def new_file_id() -> str:
    """An id that nobody can guess."""
    return f"file-{secrets.token_hex(16)}"


class FileStore:
    """One router's access to the files of all teams. All of it raises RedisUnavailable or OSError."""

    def __init__(self, settings: BatchSettings, store: RedisStore, objects: ObjectStore) -> None:
        self.objects = objects
        self.has_neighbours: bool | None = False
        """Whether routers of other Ray clusters use this Redis; None: not known yet."""
        self._settings = settings
        self._store = store
        self._add = store.script(_ADD)

    @property
    def takes_files(self) -> bool:
        """Whether every router that may be asked for a new file can read it."""
        return self.objects.shared or not self.has_neighbours

    async def is_elsewhere(self, owner: str, file_id: str) -> bool:
        """Whether only another Ray cluster can read the owner's file."""
        if self.objects.shared or self.has_neighbours is False:
            return False
        if (record := await self.get_even_expired(owner, file_id)) is None:
            return False
        try:
            await asyncio.to_thread(self.objects.read, record.object_name, 0, 1)
        except FileNotFoundError:
            return True
        except (OSError, Unreadable):
            pass  # whoever needs the file will say so
        return False

    async def write(self, name: str, content: Iterable[bytes]) -> int:
        """Writes the bytes of a file that is not there yet into this object. Returns their number."""
        return await asyncio.to_thread(self.objects.write, name, content)

    async def add(self, owner: str, record: FileRecord) -> Refusal | None:
        """Adds a file whose bytes are written; why not, if the owner has too much."""
        keys = [owner_key("files", owner), owner_key("sizes", owner), OWNERS]
        limits = self._settings.files_per_team, self._settings.bytes_per_team
        reply = await self._add(
            keys, record.id, encode_file(record), record.bytes, owner, *limits, extra_s=BACKGROUND_EXTRA_S
        )
        refusals: dict[int, Refusal] = {1: "files", 2: "bytes"}
        return refusals.get(int(reply))

    async def get(self, owner: str, file_id: str) -> FileRecord | None:
        """The owner's file; None if there is none, or it has expired."""
        record = await self.get_even_expired(owner, file_id)
        return record if record and record.expires_at > time.time() else None

    async def get_even_expired(self, owner: str, file_id: str) -> FileRecord | None:
        """The owner's file, which may have expired since a batch began to use it; None if there is none."""
        value = await self._store.execute("HGET", owner_key("files", owner), file_id, extra_s=BACKGROUND_EXTRA_S)
        return decode_file(value) if value else None

    async def of(self, owner: str, *, expired: bool = False) -> list[FileRecord]:
        """The owner's files, the oldest first; or those that have expired."""
        values = await self._store.execute("HVALS", owner_key("files", owner), extra_s=BACKGROUND_EXTRA_S)
        records, now = map(decode_file, values), time.time()
        return sorted(
            (record for record in records if (record.expires_at <= now) == expired),
            key=lambda record: (record.created_at, record.id),
        )

    async def remove(self, owner: str, file_id: str) -> None:
        """Removes a file, first its bytes: what is left after a failure can be removed again."""
        if (record := await self.get_even_expired(owner, file_id)) is not None:
            await self.discard(record.object_name)
        await self._store.execute("HDEL", owner_key("files", owner), file_id)
        await self._store.execute("HDEL", owner_key("sizes", owner), file_id)

    async def discard(self, name: str) -> None:
        """Removes an object that no file has."""
        await asyncio.to_thread(self.objects.remove, name)
