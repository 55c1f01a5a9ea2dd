"""A router's lease on a task of a batch, renewed while the router works on it."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

from deployments.batches.batch_store import BatchStore, Task
from deployments.common.redis import RedisUnavailable

RENEWALS = 5
"""How many times a lease is renewed in its time."""


@dataclass(eq=False)
class TaskLease:
    """This router's lease on a task, renewed until it ends. stop: why the batch stops; `lost`: another works on it.
    changes: of the batch's files. news: set when one of both changes."""

    store: BatchStore
    task: Task
    stop: str
    changes: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def keep(self) -> None:
        """Renews it until cancelled."""
        while True:
            if self.stop:
                self.news.set()
            await asyncio.sleep(self.store.lease_s / RENEWALS)
            with suppress(RedisUnavailable):
                self.stop = await self.store.renew(self.task)
                if (changes := await self.store.changes(self.task.batch_id)) > self.changes:
                    self.changes = changes
                    self.news.set()
