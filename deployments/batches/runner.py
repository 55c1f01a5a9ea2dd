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
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from cluster.objects.store import numbered_lines
from deployments.api.protocol.batches import BatchError
from deployments.batches.asking import NOT_RUN, LineAsker, LineError, OutputLine, not_answered
from deployments.batches.batch_store import FINALIZE, VALIDATE, Batch, BatchStore, Task
from deployments.batches.file_store import FileRecord, FileStore, new_file_id, object_name
from deployments.batches.input_lines import CHUNK_LINES, Checked, InputLine, check_lines
from deployments.batches.output import BatchOutput, Part, read_chunk
from deployments.common.redis import RedisUnavailable
from deployments.common.tasks import to_the_end
from deployments.observability.metrics import RouterMetrics

T = TypeVar("T")

log = logging.getLogger("dray.batches")

_POLL_S = 1.0
_RENEWALS = 5
"""How many times a lease is renewed in its time."""
_FAILED = LineError("server_error", "The server failed on this request.")
_UNREADABLE = BatchError("file_unreadable", "The input file cannot be read; it may have been removed.")


@dataclass(eq=False)
class _Lease:
    """This router's lease on a task, renewed until it ends. stop: why the batch stops; `lost`: another works on it."""

    store: BatchStore
    task: Task
    stop: str

    async def keep(self, stopped: asyncio.Event) -> None:
        """Renews it until cancelled, and sets the event once the batch stops."""
        while True:
            if self.stop:
                stopped.set()
            await asyncio.sleep(self.store.lease_s / _RENEWALS)
            with suppress(RedisUnavailable):
                self.stop = await self.store.renew(self.task)


class BatchRunner:
    """One router's work on batches."""

    def __init__(
        self, store: BatchStore, files: FileStore, asker: LineAsker, lines_at_a_time: int, metrics: RouterMetrics
    ) -> None:
        self._store = store
        self._files = files
        self._asker = asker
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
            if await self._files.is_elsewhere(batch.input_file_id):
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

    async def _work(self, task: Task) -> None:
        lease, stopped = _Lease(self._store, task, task.stop), asyncio.Event()
        renewing = asyncio.create_task(lease.keep(stopped))
        try:
            if (batch := await self._until_answered(lambda: self._store.get(task.batch_id))) is None:
                return
            if task.name == VALIDATE:
                await self._validate(task, batch)
            elif task.name == FINALIZE:
                await self._finalize(task, batch)
            else:
                await self._ask_chunk(task, batch, lease, stopped)
        except asyncio.CancelledError:
            await to_the_end(self._leave(task))
            raise
        except Exception:
            log.exception("a task of a batch failed; it is tried again", extra={"batch": task.batch_id})
            # Its lease runs out by itself, so that a failure that stays is not repeated at once.
        finally:
            renewing.cancel()
            del self._left[task]
            self._room.set()

    async def _leave(self, task: Task) -> None:
        with suppress(RedisUnavailable):
            await self._store.release(task)

    async def _validate(self, task: Task, batch: Batch) -> None:
        checked: Checked | None = None
        file = await self._until_answered(lambda: self._files.get_even_expired(batch.owner, batch.input_file_id))
        if file is not None:
            objects, name = self._files.objects, object_name(file.id)
            with suppress(FileNotFoundError):
                checked = await asyncio.to_thread(
                    lambda: check_lines(numbered_lines(objects, name, 0, file.bytes), file.bytes, batch.endpoint)
                )
        problems = [_UNREADABLE] if checked is None else checked.problems
        if problems or checked is None:
            await self._until_answered(lambda: self._store.commit_invalid(task, problems))
        else:
            await self._until_answered(lambda: self._store.commit_valid(task, checked.places, checked.lines))

    async def _ask_chunk(self, task: Task, batch: Batch, lease: _Lease, stopped: asyncio.Event) -> None:
        lines = await asyncio.to_thread(read_chunk, self._files.objects, batch, int(task.name))
        self._left[task] = len(lines)
        asked = {asyncio.create_task(self._ask(task, line, batch)): line for line in lines}
        stopping = asyncio.create_task(stopped.wait())
        try:
            while not stopping.done() and (running := {ask for ask in asked if not ask.done()}):
                await asyncio.wait({stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            for ask in asked:
                ask.cancel()
            await asyncio.wait(asked)
        if lease.stop == "lost":
            return
        error = NOT_RUN.get(lease.stop, NOT_RUN["cancelled"])
        outputs = [
            not_answered(line.custom_id, error) if ask.cancelled() else ask.result() for ask, line in asked.items()
        ]
        await self._commit_chunk(task, outputs)

    async def _commit_chunk(self, task: Task, outputs: list[OutputLine]) -> None:
        write = partial(Part.write, self._files.objects, task.name, task.batch_id, outputs)
        part = await self._until_answered(lambda: asyncio.to_thread(write))
        completed = sum(output.succeeded for output in outputs)
        failed = len(outputs) - completed - sum(output.error in NOT_RUN.values() for output in outputs)
        if await self._until_answered(lambda: self._store.commit_lines(task, part.encode(), completed, failed)):
            self._metrics.batch_lines["completed",].inc(completed)
            self._metrics.batch_lines["failed",].inc(failed)
        else:
            await asyncio.to_thread(self._files.objects.remove, part.name)

    async def _ask(self, task: Task, line: InputLine, batch: Batch) -> OutputLine:
        try:
            async with self._asking:
                with self._metrics.batch_lines_running.track_inprogress():
                    return await self._asker.ask(line, batch)
        except Exception:
            # Asked again and again, one line would keep the whole batch from its end.
            log.exception("a line of a batch failed", extra={"batch": batch.id})
            return not_answered(line.custom_id, _FAILED)
        finally:
            self._left[task] -= 1
            self._room.set()

    async def _finalize(self, task: Task, batch: Batch) -> None:
        parts = await self._until_answered(lambda: self._store.parts(batch.id))
        output, files, now = BatchOutput(self._files.objects, batch, parts), dict[str, FileRecord](), int(time.time())
        contents = {"output": output.answers, "error": output.errors}
        if not self._asker.has_team(batch):
            contents = {}  # a later team of the same name would get them
        for kind, content in contents.items():
            file_id = new_file_id()
            if size := await self._files.write(file_id, content()):
                files[f"{kind}_file_id"] = FileRecord(
                    file_id, size, now, f"{batch.id}_{kind}.jsonl", "batch_output", now + batch.output_ttl_s
                )
            else:
                await self._files.discard(file_id)
        status = batch.stop or "completed"
        if await self._until_answered(lambda: self._store.commit_output(task, batch.owner, status, files)):
            if batch.stop:
                self._metrics.batch_lines[batch.stop,].inc(batch.total - batch.completed - batch.failed)
            for name in output.part_names:
                await asyncio.to_thread(self._files.objects.remove, name)
        else:
            for file in files.values():
                await self._files.discard(file.id)

    async def _until_answered(self, call: Callable[[], Awaitable[T]]) -> T:
        """What Redis or the store of objects answers, whenever that is: the work is done, and would have to be done
        again by whoever takes the task next."""
        while True:
            try:
                return await call()
            except RedisUnavailable:
                pass  # its store logs that
            except OSError as error:
                log.warning("answers of a batch cannot be written; trying again", extra={"error": str(error)})
            await asyncio.sleep(self._store.lease_s / _RENEWALS)
