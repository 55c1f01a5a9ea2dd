"""What teams use: each router counts in memory and adds its counts to Redis twice a second, each exactly once."""

import asyncio
import logging
import secrets
from collections import Counter
from contextlib import suppress
from typing import Literal

from cluster.records.usage import KEPT_S, UsageRow, field_of, key_of, queue_reads, rows, today
from deployments.common.redis import RedisStore, RedisUnavailable
from deployments.common.types import Usage

log = logging.getLogger("dray.usage")

Reused = Literal["hit", "curated", "join"]
"""An answer from the cache, a curated one, or that of another request in progress."""

_FLUSH_S = 0.5
_CLOSE_S = 3.0
_RETRY_S = 0.1
_BATCH_KEPT_S = 86_400

# A call that timed out may have reached Redis nevertheless. So batches are numbered, and repeating one adds nothing.
# KEYS: counters of the day; number of this router's last batch. ARGV: number, seconds to keep each key, field, count, …
_ADD = """
if tonumber(redis.call('GET', KEYS[2]) or '0') >= tonumber(ARGV[1]) then return 0 end
for i = 4, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[3])
return 1
"""


class UsageRecorder:
    """Counts the usage of one router. Close it when its last request has ended."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._add = store.script(_ADD)
        self._batch_key = f"dray:{{teams}}:usage-batch:{secrets.token_hex(8)}"
        self._counts: dict[str, Counter[str]] = {}
        self._batch: tuple[str, Counter[str]] | None = None
        self._batch_number = 0
        self._writing = asyncio.Lock()

    def record(self, team: str, model: str, usage: Usage, *, generated: bool, reused: Reused = "hit") -> None:
        """Counts an answered request.

        generated: its answer was generated for it. reused: where it came from otherwise.
        """
        if generated:
            counts = {
                "prompt": usage.prompt_tokens,
                "completion": usage.completion_tokens,
                "cached": usage.cached_tokens,
            }
        else:
            counts = {"hits": 1, "saved_prompt": usage.prompt_tokens, "saved_completion": usage.completion_tokens}
            if reused != "hit":
                counts["joins" if reused == "join" else reused] = 1
        day = self._counts.setdefault(today(), Counter())
        for name, count in {"requests": 1, **counts}.items():
            day[field_of(team, model, name)] += count

    async def flush_forever(self) -> None:
        """Adds the counts to Redis every half second, until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            await self.flush()

    async def flush(self) -> None:
        """Adds the counts so far to Redis. The next flush repeats what Redis did not take, or what was cancelled."""
        async with self._writing:
            while self._batch or self._counts:
                if self._batch is None:
                    day = next(iter(self._counts))
                    self._batch = day, self._counts.pop(day)
                    self._batch_number += 1
                day, counter = self._batch
                fields = [value for item in counter.items() for value in item]
                keys = [key_of(day), self._batch_key]
                try:
                    await self._add(keys, self._batch_number, KEPT_S, _BATCH_KEPT_S, *fields)
                except RedisUnavailable:
                    return
                self._batch = None

    async def close(self, timeout_s: float = _CLOSE_S) -> None:
        """Adds the last counts, and tries again while Redis is unavailable; logs what is lost after timeout_s."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.flush()
                while self._batch or self._counts:
                    await asyncio.sleep(_RETRY_S)
                    await self.flush()
        if self._batch or self._counts:
            log.error("usage since the last flush is lost: the teams' Redis does not answer")

    async def read(self, days: int, team: str | None) -> list[UsageRow]:
        """The usage of the last days (UTC), of one team or of all. Raises RedisUnavailable."""
        await self.flush()
        names: list[str] = []
        results = await self._store.transaction(lambda pipe: names.extend(queue_reads(pipe, days)))
        return rows(dict(zip(names, results, strict=True)), team)
