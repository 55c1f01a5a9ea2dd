"""Batches in Redis: their state, and the tasks that routers share by leases (deployments.batches.scripts)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from cluster.records.batches import (
    OPEN,
    OWNERS,
    TEXTS,
    FileRecord,
    batch_key,
    encode_file,
    field_place,
    owner_key,
)
from cluster.records.sealing import seal_text, unseal_text
from cluster.settings import BatchSettings
from deployments.api.protocol.batches import BatchError
from deployments.batches import scripts
from deployments.batches.input_lines import Checked
from deployments.common.redis import BACKGROUND_EXTRA_S, RedisStore

VALIDATE, FINALIZE = "validate", "finalize"
_MIN_EXTRA_S, _MAX_EXTRA_S = 3600, 86_400
LEASE_S = 10.0
"""After this time without a sign of life of its router, a task is anybody's."""


class FilesChanged(Exception):
    """Files of the batch were changed after the task has read them, so it must read them again."""


class Batch(msgspec.Struct, frozen=True):
    """A batch. Times are in Unix seconds; 0: not yet. places: of the chunks of lines in the input file, in bytes, and
    of its end. checksums: of these chunks in the object `checked`; in another, lines were forgotten. stop: why it ends
    early, `expired` or `cancelled`. changes: of its files while it was open."""

    id: str
    owner: str
    input_file_id: str
    endpoint: str
    completion_window: str
    status: str
    created_at: int
    expires_at: int
    output_ttl_s: int
    metadata: str = ""
    total: int = 0
    completed: int = 0
    failed: int = 0
    places: str = ""
    checksums: str = ""
    checked: str = ""
    stop: str = ""
    changes: int = 0
    errors: str = ""
    output_file_id: str = ""
    error_file_id: str = ""
    in_progress_at: int = 0
    finalizing_at: int = 0
    completed_at: int = 0
    failed_at: int = 0
    expired_at: int = 0
    cancelling_at: int = 0
    cancelled_at: int = 0

    @property
    def chunk_places(self) -> list[int]:
        """Where each chunk of lines begins in the input file, and where the last one ends."""
        return msgspec.json.decode(self.places, type=list[int]) if self.places else []

    @property
    def chunk_checksums(self) -> list[str]:
        """Of each chunk of lines; empty: an earlier version made none."""
        return msgspec.json.decode(self.checksums, type=list[str]) if self.checksums else []

    def retries_end(self, task: str) -> float:
        """The Unix time until which a task is tried again that fails: at least for an hour after the window, at most
        for a day, and for half of that where lines are asked, as there are answers to be written then."""
        extra_s = min(max(self.expires_at - self.created_at, _MIN_EXTRA_S), _MAX_EXTRA_S)
        return self.expires_at + (extra_s if task == FINALIZE else extra_s / 2)


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch that has not ended."""

    id: str
    owner: str
    input_file_id: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task of a batch on which this router holds a lease. stop: why the batch stops; empty: it does not."""

    batch_id: str
    name: str
    holder: str
    stop: str


@dataclass(frozen=True, slots=True)
class Ending:
    """How a batch ends. problems: what of it cannot be read any more. lost: how many answers."""

    status: str
    problems: Sequence[BatchError] = ()
    lost: int = 0


class BatchStore:
    """One router's access to the batches of all teams. All of it raises RedisUnavailable."""

    def __init__(self, settings: BatchSettings, store: RedisStore, lease_s: float) -> None:
        """lease_s: of a task, in seconds."""
        self.lease_s = lease_s
        self._settings = settings
        self._store = store
        self._create, self._claim, self._renew = map(store.script, (scripts.CREATE, scripts.CLAIM, scripts.RENEW))
        self._release, self._cancel = map(store.script, (scripts.RELEASE, scripts.CANCEL))
        self._valid, self._failed = map(store.script, (scripts.COMMIT_VALID, scripts.COMMIT_FAILED))
        self._lines, self._output = map(store.script, (scripts.COMMIT_LINES, scripts.COMMIT_OUTPUT))

    async def create(self, batch: Batch) -> bool:
        """Adds a batch; False if the owner has too many that have not ended."""
        given: dict[str, Any] = msgspec.to_builtins(batch)
        given["metadata"] = seal_text(batch.metadata, field_place(batch.id, "metadata"))
        fields = [part for name, value in given.items() if value not in ("", 0) for part in (name, value)]
        owned, limit = owner_key("of", batch.owner), self._settings.batches_per_team
        arguments = (batch.id, batch.owner, batch.input_file_id, limit, batch_key("batch", ""), *fields)
        return bool(await self._create([*_keys(batch.id), owned], *arguments))

    async def get(self, batch_id: str) -> Batch | None:
        """A batch of any owner."""
        return _batch(await self._store.execute("HGETALL", batch_key("batch", batch_id), extra_s=BACKGROUND_EXTRA_S))

    async def of(self, owner: str, since: float = 0.0) -> list[str]:
        """The ids of the owner's batches that were created after this Unix time, the newest first."""
        ids = await self._store.execute("ZREVRANGEBYSCORE", owner_key("of", owner), "+inf", int(1000 * since))
        return [batch_id.decode() for batch_id in ids]

    async def get_all(self, ids: Sequence[str]) -> list[Batch]:
        """The batches of these ids that are still kept."""
        if not ids:
            return []
        replies = await self._store.pipeline([("HGETALL", batch_key("batch", batch_id)) for batch_id in ids])
        return [batch for reply in replies if (batch := _batch(reply)) is not None]

    async def open(self) -> list[OpenBatch]:
        """All batches that have not ended."""
        reply = _pairs(await self._store.execute("HGETALL", OPEN, extra_s=BACKGROUND_EXTRA_S))
        return [OpenBatch(batch_id, *value.split("\n", 1)) for batch_id, value in reply.items()]

    async def owners(self) -> list[str]:
        """Every owner that has had a file."""
        return [owner.decode() for owner in await self._store.execute("SMEMBERS", OWNERS)]

    async def claim(self, batch_id: str, holder: str) -> Task | None:
        """A task that nobody works on, with a lease for this holder."""
        reply = await self._claim(_keys(batch_id), batch_id, holder, self._lease_ms, extra_s=BACKGROUND_EXTRA_S)
        return Task(batch_id, reply[0].decode(), holder, reply[1].decode()) if reply else None

    async def renew(self, task: Task) -> str:
        """Renews the lease on a task. `lost` if it is another's by now; else why the batch stops, or nothing."""
        arguments = (task.name, task.holder, self._lease_ms)
        reply: bytes = await self._renew(_keys(task.batch_id), *arguments, extra_s=BACKGROUND_EXTRA_S)
        return reply.decode()

    async def release(self, task: Task) -> None:
        """Leaves a task to the others."""
        await self._release(_keys(task.batch_id), task.name, task.holder, extra_s=BACKGROUND_EXTRA_S)

    async def changes(self, batch_id: str) -> int:
        """How often files of the batch were changed."""
        command = ("HGET", batch_key("batch", batch_id), "changes")
        return int(await self._store.execute(*command, extra_s=BACKGROUND_EXTRA_S) or 0)

    async def commit_valid(self, task: Task, batch: Batch, checked: Checked, name: str) -> bool:
        """The input file is right. name: of its object.

        Of all commits: batch: as it was before the task read files. Returns False if the lease is lost. Raises
        FilesChanged.
        """
        names = [chunk_name(number) for number in range(len(checked.checksums))]
        encode = msgspec.json.encode
        found = (encode(checked.places), checked.lines, encode(checked.checksums), name)
        arguments = (task.holder, batch.changes, *found, *names)
        return _committed(await self._valid(_keys(task.batch_id), *arguments, extra_s=BACKGROUND_EXTRA_S))

    async def commit_failed(self, task: Task, batch: Batch, problems: Sequence[BatchError]) -> bool:
        """The batch ends without any output."""
        errors = _sealed_errors(batch, problems)
        arguments = (task.name, task.holder, batch.changes, errors, task.batch_id, self._settings.file_ttl_s)
        return _committed(await self._failed(_keys(task.batch_id), *arguments, extra_s=BACKGROUND_EXTRA_S))

    async def commit_lines(self, task: Task, batch: Batch, part: str, completed: int, failed: int) -> bool:
        """A chunk of lines has been answered. part: says where the answers are."""
        arguments = (task.name, task.holder, part, completed, failed, batch.changes)
        return _committed(await self._lines(_keys(task.batch_id), *arguments, extra_s=BACKGROUND_EXTRA_S))

    async def commit_output(self, task: Task, batch: Batch, ending: Ending, files: Mapping[str, FileRecord]) -> bool:
        """The batch has ended. files: by the field of the batch that names each."""
        written = [part for name, file in files.items() for part in (name, file.id, encode_file(file), file.bytes)]
        keys = [*_keys(task.batch_id), owner_key("files", batch.owner), owner_key("sizes", batch.owner), OWNERS]
        arguments = (task.holder, batch.id, batch.owner, self._settings.file_ttl_s, ending.status, batch.changes)
        damage = (_sealed_errors(batch, ending.problems), ending.lost)
        return _committed(await self._output(keys, *arguments, *damage, *written, extra_s=BACKGROUND_EXTRA_S))

    async def parts(self, batch_id: str) -> dict[str, str]:
        """Where the answers to each chunk are, by its name."""
        return _pairs(await self._store.execute("HGETALL", batch_key("parts", batch_id), extra_s=BACKGROUND_EXTRA_S))

    async def cancel(self, batch_id: str) -> str:
        """Cancels a batch, unless it has ended. Returns its status before."""
        reply: bytes = await self._cancel(_keys(batch_id), extra_s=BACKGROUND_EXTRA_S)
        return (reply or b"").decode()

    @property
    def _lease_ms(self) -> int:
        return int(1000 * self.lease_s)


def chunk_name(number: int) -> str:
    """The task of a chunk of lines. Names sort as numbers do."""
    return f"{number:06d}"


def _keys(batch_id: str) -> list[str]:
    return [*(batch_key(kind, batch_id) for kind in ("batch", "todo", "holders", "parts")), OPEN]


def _sealed_errors(batch: Batch, problems: Sequence[BatchError]) -> str:
    if not problems:
        return ""
    return seal_text(msgspec.json.encode(problems).decode(), field_place(batch.id, "errors"))


def _committed(reply: int) -> bool:
    if reply < 0:
        raise FilesChanged
    return bool(reply)


def _batch(reply: Any) -> Batch | None:
    fields = _pairs(reply)
    if "id" not in fields:
        return None
    for name in TEXTS:
        fields[name] = unseal_text(fields.get(name, ""), field_place(fields["id"], name)) or ""
    return msgspec.convert(fields, Batch, strict=False)


def _pairs(reply: Any) -> dict[str, str]:
    """A hash, which Redis' two protocols send in two ways."""
    flat = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): value.decode() for name, value in flat}
