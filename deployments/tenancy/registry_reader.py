"""Reads the teams and keys from Redis: all of them once, page by page, and from then on the changes alone."""

from collections.abc import AsyncIterator

from cluster.records.team_tables import CHANGES, KEYS, LOCKED, TEAMS, VERSION
from cluster.records.teams import Registry, apply_change, decode_keys, decode_teams
from deployments.common.redis import RedisStore

_PAGE = 1000
"""Records read at once: so no read takes longer than a call to Redis may, and nobody waits for it."""
_MAX_CHANGES = 200
"""Changes read at once."""


class RegistryReader:
    """One router's reads of teams and keys. Every method raises RedisUnavailable."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    async def version(self) -> int:
        """The version of what is stored."""
        return int(await self._store.get(VERSION) or 0)

    async def read_all(self) -> Registry:
        """All teams and keys. While they are read others may change some: `read_changes` brings that up to date."""
        version = await self.version()
        teams = {name: team async for page in self._pages(TEAMS) for name, team in decode_teams(page).items()}
        keys = {name: key async for page in self._pages(KEYS) for name, key in decode_keys(page).items()}
        locked = await self._store.get(LOCKED)
        return Registry(version, teams, keys, bool(locked or keys))  # an earlier version stored no lock

    async def read_changes(self, registry: Registry, version: int) -> Registry | None:
        """The registry at this version or a later one; None if the changes are not known, or Redis has lost its data.

        The tables of the registry become those of the new one.
        """
        if version < registry.version:
            return None
        while registry.version < version:
            entries = await self._store.entries(CHANGES, f"{registry.version + 1}-1".encode(), _MAX_CHANGES)
            if not entries:
                return None
            for number, records in entries:
                if number != f"{registry.version + 1}-1".encode():
                    return None
                registry = apply_change(registry, registry.version + 1, records)
        return registry

    async def _pages(self, table: str) -> AsyncIterator[dict[bytes, bytes]]:
        cursor = 0
        while True:
            cursor, records = await self._store.scan_hash(table, cursor, _PAGE)
            yield records
            if not cursor:
                return
