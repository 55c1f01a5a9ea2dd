"""Ends batches: writes the files of what was answered, and says what was lost."""

import logging
import time
from collections.abc import Iterable
from functools import partial

from cluster.objects.sealed import new_name
from cluster.records.batches import FileRecord, object_name, sealed_filename
from deployments.api.protocol.batches import BatchError
from deployments.batches.asking import LineAsker
from deployments.batches.batch_store import Batch, BatchStore, Ending, FilesChanged, Task
from deployments.batches.file_store import FileStore, new_file_id
from deployments.batches.lease import RENEWALS
from deployments.batches.output import AnswersDamaged, BatchOutput
from deployments.batches.retrying import until_answered
from deployments.observability.metrics import RouterMetrics

log = logging.getLogger("dray.batches")

_GIVEN_UP = BatchError(
    "output_not_written",
    "The output of this batch could not be written, and the time for that is over. Ask the operator of Dray, whose log "
    "says why, and create the batch again when it is mended.",
)


class Finalizer:
    """Does the last task of batches, for one router."""

    def __init__(self, store: BatchStore, files: FileStore, asker: LineAsker, metrics: RouterMetrics) -> None:
        self._store = store
        self._files = files
        self._asker = asker
        self._metrics = metrics

    async def finalize(self, task: Task, batch: Batch) -> None:
        """Ends a batch. What is damaged for good is named in its errors, and so is, once the time for attempts is over,
        what cannot be read for another reason.

        Raises FilesChanged, and RedisUnavailable, OSError or Unreadable where it may succeed later.
        """
        parts = await self._store.parts(batch.id)
        file = await self._files.get_even_expired(batch.owner, batch.input_file_id)
        input_name = file.object_name if file is not None else object_name(batch.input_file_id)
        may_wait = time.time() < batch.retries_end(task.name)
        output = BatchOutput(self._files.objects, batch, input_name, parts, may_wait=may_wait)
        written = await self._write(output)
        status = batch.stop or ("failed" if output.problems else "completed")
        # With a team that was removed nothing was read.
        lost = max(0, batch.completed - output.answered) if output.answers_lost else 0
        ending = Ending(status, output.problems, lost)
        try:
            commit = partial(self._store.commit_output, task, batch, ending, written)
            committed = await until_answered(commit, self._store.lease_s / RENEWALS, batch.retries_end(task.name))
        except FilesChanged:
            await self.discard(file.object_name for file in written.values())
            raise
        if not committed:
            await self.discard(file.object_name for file in written.values())
            return
        if output.problems:
            log.error("files of a batch are damaged", extra={"batch": batch.id, "reason": output.reason})
        if batch.stop:
            self._metrics.batch_lines[batch.stop,].inc(batch.total - batch.completed - batch.failed)
        await self.discard(output.part_names)

    async def give_up(self, task: Task) -> None:
        """Ends a batch without any output, if it could not be ended in all the time for it. Raises RedisUnavailable."""
        batch = await self._store.get(task.batch_id)
        if batch is not None and time.time() > batch.retries_end(task.name):
            await self._store.commit_failed(task, batch, [_GIVEN_UP])

    async def discard(self, names: Iterable[str]) -> None:
        """Removes objects that nothing refers to. Those that cannot be removed now are swept later."""
        for name in names:
            try:
                await self._files.discard(name)
            except OSError as error:
                log.warning("an object cannot be removed now", extra={"object": name, "error": str(error)})

    async def _write(self, output: BatchOutput) -> dict[str, FileRecord]:
        """Writes the files of a batch; by the field of the batch that names each. Raises OSError, Unreadable."""
        if not self._asker.has_team(output.batch):
            return {}  # a later team of the same name would get them
        while True:
            written = dict[str, FileRecord]()
            try:
                await self._write_both(output, written)
                return written
            except BaseException as error:
                await self.discard(file.object_name for file in written.values())
                if not isinstance(error, AnswersDamaged):
                    raise

    async def _write_both(self, output: BatchOutput, written: dict[str, FileRecord]) -> None:
        batch, now = output.batch, int(time.time())
        for kind, content in (("output", output.answers), ("error", output.errors)):
            file_id = new_file_id()
            name = new_name(object_name(file_id))
            if not (size := await self._files.write(name, content())):
                await self.discard([name])
                continue
            filename = sealed_filename(file_id, f"{batch.id}_{kind}.jsonl")
            expires_at = now + batch.output_ttl_s
            record = FileRecord(file_id, size, now, filename, "batch_output", expires_at, stored_as=name)
            written[f"{kind}_file_id"] = record
