"""Runs batches: takes tasks of any team's batches while there is room, and asks their lines.

All routers do the same, each for itself; Redis shares the tasks out by leases (deployments.batches.batch_store).
"""

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from cluster.objects.store import numbered_lines
from cluster.records.batch_lines import FORGOTTEN, LineError, OutputLine, forgotten
from cluster.records.batches import UNREAD, FileRecord
from cluster.records.sealing import Unreadable
from deployments.api.protocol.batches import BatchError
from deployments.batches.asking import NOT_RUN, LineAsker, not_answered
from deployments.batches.batch_store import FINALIZE, VALIDATE, Batch, BatchStore, FilesChanged, OpenBatch, Task
from deployments.batches.file_store import FileStore
from deployments.batches.finalizing import Finalizer
from deployments.batches.input_lines import CHUNK_LINES, Checked, InputLine, check_lines
from deployments.batches.lease import RENEWALS, TaskLease
from deployments.batches.output import LOST_FOR_GOOD, read_chunk, write_part
from deployments.batches.retrying import until_answered
from deployments.common.redis import RedisUnavailable
from deployments.common.tasks import to_the_end
from deployments.observability.metrics import RouterMetrics

T = TypeVar("T")

log = logging.getLogger("dray.batches")

_POLL_S = 1.0
_NOT_ASKED = (FORGOTTEN, *NOT_RUN.values())
_TRIED_AGAIN = "a task of a batch failed; it is tried again"
_FAILED = LineError("server_error", "The server failed on this request.")
_UNREADABLE = BatchError(
    "file_damaged",
    "The input file cannot be read: it was changed, cut off or removed where it is stored. Upload it again, and create "
    "a batch of it.",
)


class BatchRunner:
    """One router's work on batches."""

    def __init__(
        self, store: BatchStore, files: FileStore, asker: LineAsker, lines_at_a_time: int, metrics: RouterMetrics
    ) -> None:
        self._store = store
        self._files = files
        self._asker = asker
        self._finalizer = Finalizer(store, files, asker, metrics)
        self._lines_at_a_time = lines_at_a_time
        self._metrics = metrics
        self._asking = asyncio.Semaphore(lines_at_a_time)
        self._left: dict[Task, int] = {}
        """Lines that are not answered yet, of each task that this router has taken."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._room = asyncio.Event()
        self._turns = itertools.count(secrets.randbelow(1 << 16))

    async def run_forever(self) -> None:
        """Takes tasks until cancelled."""
        while True:
            self._room.clear()
            taken = False
            if not self._closed and sum(self._left.values()) < self._lines_at_a_time:
                with suppress(RedisUnavailable):
                    taken = await self._take()
            if not taken:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_S):
                        await self._room.wait()

    def wake(self) -> None:
        """Looks for tasks now."""
        self._room.set()

    async def close(self) -> None:
        """Takes no more tasks, and leaves those that it has to the other routers."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _take(self) -> bool:
        """Starts to work on a task, if there is a free one; of the open batches in turn."""
        batches = await self._store.open()
        first = next(self._turns)
        for index in range(len(batches)):
            batch = batches[(first + index) % len(batches)]
            if await self._is_others(batch):
                continue
            task = await self._store.claim(batch.id, secrets.token_hex(8))
            if task is not None and self._closed:
                await self._leave(task)
            elif task is not None:
                self._left[task] = CHUNK_LINES
                work = asyncio.create_task(self._work(task))
                self._tasks.add(work)
                work.add_done_callback(self._tasks.discard)
                return True
        return False

    async def _is_others(self, batch: OpenBatch) -> bool:
        """Whether only routers of another Ray cluster can work on a batch, which have time for it."""
        if not await self._files.is_elsewhere(batch.owner, batch.input_file_id):
            return False
        found = await self._store.get(batch.id)
        return found is not None and time.time() < found.retries_end(FINALIZE)

    async def _work(self, task: Task) -> None:
        lease = TaskLease(self._store, task, task.stop)
        renewing = asyncio.create_task(lease.keep())
        try:
            while (batch := await self._store.get(task.batch_id)) is not None:
                with suppress(FilesChanged):
                    await self._do(task, batch, lease)
                    return
        except asyncio.CancelledError:
            await to_the_end(self._leave(task))
            raise
        except (RedisUnavailable, OSError, Unreadable) as error:
            log.warning(_TRIED_AGAIN, extra={"batch": task.batch_id, "task": task.name, "reason": str(error)})
            await self._try_later(task)
        except Exception:
            log.exception(_TRIED_AGAIN, extra={"batch": task.batch_id, "task": task.name})
            await self._try_later(task)
        finally:
            renewing.cancel()
            del self._left[task]
            self._room.set()

    async def _do(self, task: Task, batch: Batch, lease: TaskLease) -> None:
        if task.name == VALIDATE:
            await self._validate(task, batch)
        elif task.name == FINALIZE:
            await self._finalizer.finalize(task, batch)
        else:
            try:
                await self._ask_chunk(task, batch, lease)
            except LOST_FOR_GOOD as error:
                log.error("lines of a batch are damaged", extra={"batch": batch.id, "reason": str(error)})
                if (now := await self._store.get(batch.id)) is not None:
                    await self._until_answered(now, lambda: self._store.commit_lines(task, now, UNREAD.encode(), 0, 0))

    async def _try_later(self, task: Task) -> None:
        """Lets the task's lease run out by itself, so that a failure that stays is not repeated at once.

        That has an end: chunks are left out when the batch's window is over, and then the last task is given up.
        """
        if task.name == FINALIZE:
            with suppress(RedisUnavailable, FilesChanged):
                await self._finalizer.give_up(task)

    async def _leave(self, task: Task) -> None:
        with suppress(RedisUnavailable):
            await self._store.release(task)

    async def _validate(self, task: Task, batch: Batch) -> None:
        def check(file: FileRecord) -> tuple[Checked, str]:
            lines = numbered_lines(self._files.objects, file.object_name, 0, file.bytes)
            return check_lines(lines, file.bytes, batch.endpoint), file.object_name

        try:
            checked, name = await self._read_input(batch, check)
        except LOST_FOR_GOOD as error:
            log.error("the input file of a batch is damaged", extra={"batch": batch.id, "reason": str(error)})
            checked, name = Checked([], [], 0, [_UNREADABLE]), ""
        if checked.problems:
            await self._until_answered(batch, lambda: self._store.commit_failed(task, batch, checked.problems))
        else:
            await self._until_answered(batch, lambda: self._store.commit_valid(task, batch, checked, name))

    async def _read_input(self, batch: Batch, read: Callable[[FileRecord], T]) -> T:
        """What `read` makes of the input file. Raises what that raises, FileNotFoundError if there is no file."""
        seen = None
        while (file := await self._input_file(batch)) is not None and file != seen:
            with suppress(FileNotFoundError):
                return await asyncio.to_thread(read, file)
            seen = file  # it may have got another object meanwhile
        raise FileNotFoundError(batch.input_file_id)

    async def _input_file(self, batch: Batch) -> FileRecord | None:
        get = partial(self._files.get_even_expired, batch.owner, batch.input_file_id)
        return await self._until_answered(batch, get)

    async def _read_chunk(self, task: Task, batch: Batch) -> list[InputLine]:
        objects, number = self._files.objects, int(task.name)
        return await self._read_input(batch, lambda file: read_chunk(objects, file.object_name, batch, number))

    async def _ask_chunk(self, task: Task, batch: Batch, lease: TaskLease) -> None:
        lines = await self._read_chunk(task, batch)
        self._left[task], gone = len(lines), set[str]()
        asked = {asyncio.create_task(self._ask(task, line, batch)): line for line in lines}
        news = asyncio.create_task(lease.news.wait())
        try:
            while not lease.stop and (running := {ask for ask in asked if not ask.done()}):
                await asyncio.wait({news, *running}, return_when=asyncio.FIRST_COMPLETED)
                if news.done():
                    lease.news.clear()
                    news = asyncio.create_task(lease.news.wait())
                if lease.changes > batch.changes:
                    batch, gone = await self._read_again(task, batch)
                    for ask in [ask for ask, line in asked.items() if line.custom_id in gone]:
                        ask.cancel()
        finally:
            news.cancel()
            for ask in asked:
                ask.cancel()
            await asyncio.wait(asked)
        committed = False
        while lease.stop != "lost" and not committed:
            error = NOT_RUN.get(lease.stop, NOT_RUN["cancelled"])
            outputs = [
                ask.result() if not ask.cancelled() else not_answered(line, batch.owner, error)
                for ask, line in asked.items()
            ]
            outputs = [forgotten(one.custom_id) if one.custom_id in gone else one for one in outputs]
            try:
                await self._commit_chunk(task, batch, outputs)
                committed = True
            except FilesChanged:
                batch, gone = await self._read_again(task, batch)

    async def _read_again(self, task: Task, batch: Batch) -> tuple[Batch, set[str]]:
        """The batch as it is now, and the custom ids of a chunk's lines whose users were forgotten."""
        current = await self._until_answered(batch, lambda: self._store.get(batch.id))
        batch = current or batch
        return batch, {line.custom_id for line in await self._read_chunk(task, batch) if line.forgotten}

    async def _commit_chunk(self, task: Task, batch: Batch, outputs: list[OutputLine]) -> None:
        write = partial(write_part, self._files.objects, task.name, task.batch_id, outputs)
        part = await self._until_answered(batch, lambda: asyncio.to_thread(write))
        completed = sum(output.succeeded for output in outputs)
        failed = len(outputs) - completed - sum(output.error in _NOT_ASKED for output in outputs)
        try:
            commit = partial(self._store.commit_lines, task, batch, part.encode(), completed, failed)
            committed = await self._until_answered(batch, commit)
        except FilesChanged:
            await self._finalizer.discard([part.name])
            raise
        if committed:
            self._metrics.batch_lines["completed",].inc(completed)
            self._metrics.batch_lines["failed",].inc(failed)
        else:
            await self._finalizer.discard([part.name])

    async def _ask(self, task: Task, line: InputLine, batch: Batch) -> OutputLine:
        try:
            if line.forgotten:
                return forgotten(line.custom_id)
            async with self._asking:
                with self._metrics.batch_lines_running.track_inprogress():
                    return await self._asker.ask(line, batch)
        except Exception:
            # Asked again and again, one line would keep the whole batch from its end.
            log.exception("a line of a batch failed", extra={"batch": batch.id})
            return not_answered(line, batch.owner, _FAILED)
        finally:
            self._left[task] -= 1
            self._room.set()

    async def _until_answered(self, batch: Batch, call: Callable[[], Awaitable[T]]) -> T:
        """What Redis or the store of objects answers, as long as there is time for a chunk of this batch."""
        return await until_answered(call, self._store.lease_s / RENEWALS, batch.retries_end(""))
