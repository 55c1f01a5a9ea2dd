"""What teams use, counted by each router in memory and told to Redis every moment; nothing is lost while it is away."""

import asyncio
from collections import Counter
from functools import partial
from typing import Any

from cluster.records.usage import UsageRow, add, ask, field_of, rows, today
from deployments.common.redis import RedisStore, RedisUnavailable
from deployments.common.types import Usage

_TELL_S = 0.5


class UsageRecorder:
    """One router's counting."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._counts: dict[str, Counter[str]] = {}

    def record(self, team: str, model: str, usage: Usage, *, made: bool) -> None:
        """Counts a request that was answered. made: for it; else its answer was known, or being made for another."""
        if made:
            counts = {
                "prompt": usage.prompt_tokens,
                "completion": usage.completion_tokens,
                "cached": usage.cached_tokens,
            }
        else:
            counts = {"hits": 1, "saved_prompt": usage.prompt_tokens, "saved_completion": usage.completion_tokens}
        day = self._counts.setdefault(today(), Counter())
        for name, number in {"requests": 1, **counts}.items():
            day[field_of(team, model, name)] += number

    async def flush_forever(self) -> None:
        """Tells Redis what was counted, until cancelled."""
        while True:
            await asyncio.sleep(_TELL_S)
            await self.flush()

    async def flush(self) -> None:
        """Tells Redis now; what it does not take is kept for the next time."""
        counts, self._counts = self._counts, {}
        for day, counter in counts.items():
            try:
                await self._store.transaction(partial(_fill, day, counter))
            except RedisUnavailable:
                self._counts.setdefault(day, Counter()).update(counter)

    async def read(self, days: int, team: str | None) -> list[UsageRow]:
        """The last days, of one team or of all. Raises StoreAway."""
        await self.flush()
        asked: list[str] = []
        found = await self._store.transaction(lambda pipe: asked.extend(ask(pipe, days)))
        return rows(dict(zip(asked, found, strict=True)), team)


def _fill(day: str, counter: Counter[str], pipe: Any) -> None:
    add(pipe, day, counter)
