"""What teams use: each router counts it in memory and writes it to Redis twice a second, or once Redis is back."""

import asyncio
from collections import Counter

from cluster.records.client import Pipeline
from cluster.records.usage import UsageRow, add, ask, field_of, rows, today
from deployments.common.redis import RedisStore, RedisUnavailable
from deployments.common.types import Usage

_FLUSH_S = 0.5


class UsageRecorder:
    """Counts what the requests of one router use."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._counts: dict[str, Counter[str]] = {}
        """By day and field, what Redis has not got yet."""

    def record(self, team: str, model: str, usage: Usage, *, made: bool) -> None:
        """Counts an answered request. made: whether its answer was generated for it, not cached or joined."""
        if made:
            counts = {
                "prompt": usage.prompt_tokens,
                "completion": usage.completion_tokens,
                "cached": usage.cached_tokens,
            }
        else:
            counts = {"hits": 1, "saved_prompt": usage.prompt_tokens, "saved_completion": usage.completion_tokens}
        day = self._counts.setdefault(today(), Counter())
        for name, count in {"requests": 1, **counts}.items():
            day[field_of(team, model, name)] += count

    async def flush_forever(self) -> None:
        """Writes the counts to Redis until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            await self.flush()

    async def flush(self) -> None:
        """Writes the counts to Redis now; what it does not take is kept for the next time."""
        counts, self._counts = self._counts, {}
        for day, counter in counts.items():

            def fill(pipe: Pipeline, day: str = day, counter: Counter[str] = counter) -> None:
                add(pipe, day, counter)

            try:
                await self._store.transaction(fill)
            except RedisUnavailable:
                self._counts.setdefault(day, Counter()).update(counter)

    async def read(self, days: int, team: str | None) -> list[UsageRow]:
        """The last days, of one team or of all. Raises RedisUnavailable."""
        await self.flush()
        names: list[str] = []

        def fill(pipe: Pipeline) -> None:
            names.extend(ask(pipe, days))

        hashes = await self._store.transaction(fill)
        return rows(dict(zip(names, hashes, strict=True)), team)
