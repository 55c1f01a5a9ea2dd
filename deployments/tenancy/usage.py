"""What teams use, counted by each router in memory and told to Redis every moment; nothing is lost while it is away."""

import asyncio
from collections import Counter
from functools import partial
from typing import Any

from cluster.records.usage import UsageRow, add, ask, field_of, rows, today
from deployments.common.redis import Store, StoreAway
from deployments.common.types import Usage

_TELL_S = 0.5


class UsageBook:
    """One router's counting."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._counts: dict[str, Counter[str]] = {}

    def count(self, team: str, model: str, usage: Usage, *, made: bool) -> None:
        """Counts a request that was answered. made: for it; else its answer was known, or being made for another."""
        if made:
            counts = {"prompt": usage.prompt, "completion": usage.completion, "cached": usage.cached}
        else:
            counts = {"hits": 1, "saved_prompt": usage.prompt, "saved_completion": usage.completion}
        day = self._counts.setdefault(today(), Counter())
        for name, number in {"requests": 1, **counts}.items():
            day[field_of(team, model, name)] += number

    async def keep_telling(self) -> None:
        """Tells Redis what was counted, until cancelled."""
        while True:
            await asyncio.sleep(_TELL_S)
            await self.tell()

    async def tell(self) -> None:
        """Tells Redis now; what it does not take is kept for the next time."""
        counts, self._counts = self._counts, {}
        for day, counter in counts.items():
            try:
                await self._store.pipelined(partial(_fill, day, counter))
            except StoreAway:
                self._counts.setdefault(day, Counter()).update(counter)

    async def read(self, days: int, team: str | None) -> list[UsageRow]:
        """The last days, of one team or of all. Raises StoreAway."""
        await self.tell()
        asked: list[str] = []
        found = await self._store.pipelined(lambda pipe: asked.extend(ask(pipe, days)))
        return rows(dict(zip(asked, found, strict=True)), team)


def _fill(day: str, counter: Counter[str], pipe: Any) -> None:
    add(pipe, day, counter)
