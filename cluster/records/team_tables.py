"""The Redis tables of teams and keys as stored, and how they are changed: all of a change or nothing, on what was read.

Two hash tables of records, a version that counts every change, and a lock that outlives the last key.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from cluster.records.client import BlockingRedis, Pipeline

T = TypeVar("T")

TEAMS, KEYS, VERSION = "dray:{teams}:teams", "dray:{teams}:keys", "dray:{teams}:version"
LOCKED = "dray:{teams}:locked"
"""Exists once a key has been created. From then on every request needs a key, even when no key is left."""
_MAX_ATTEMPTS = 20

# Writes only if nobody has changed anything since the caller read this version.
# KEYS: version, teams, keys, lock. ARGV: version; then of each change the table, the field, and its record or "".
_WRITE = """
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return 0 end
local keys = redis.call('HLEN', KEYS[3])
for i = 2, #ARGV, 3 do
  if ARGV[i + 2] == '' then redis.call('HDEL', ARGV[i], ARGV[i + 1])
  else redis.call('HSET', ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
end
if keys + redis.call('HLEN', KEYS[3]) > 0 then redis.call('SET', KEYS[4], '1') end
redis.call('INCR', KEYS[1])
return 1
"""


class Contended(Exception):
    """Others kept changing the tables."""


@dataclass(slots=True)
class Tables:
    """The records as read, and the changes to make to them."""

    version: bytes | None
    teams: dict[bytes, bytes]
    keys: dict[bytes, bytes]
    locked: bytes | None
    changes: list[str | bytes] = field(default_factory=list)

    def put(self, table: str, name: str, record: bytes) -> None:
        """Adds or replaces a record."""
        self.changes += [table, name, record]

    def delete(self, table: str, name: str) -> None:
        """Deletes a record."""
        self.changes += [table, name, b""]


def queue_reads(pipe: Pipeline) -> None:
    """Adds the reads of all tables to a transaction; its results are the first arguments of Tables."""
    pipe.get(VERSION)
    pipe.hgetall(TEAMS)
    pipe.hgetall(KEYS)
    pipe.get(LOCKED)


def read_tables(client: BlockingRedis) -> Tables:
    """All tables, read in one transaction."""
    with client.pipeline(transaction=True) as pipe:
        queue_reads(pipe)
        return Tables(*pipe.execute())


def edit_tables(client: BlockingRedis, change: Callable[[Tables], T]) -> T:
    """Makes a change as if nobody else made one meanwhile: otherwise starts again from what is there by then.

    change: notes its changes in the tables that it gets; it may run several times. Raises Contended.
    """
    for _ in range(_MAX_ATTEMPTS):
        tables = read_tables(client)
        result = change(tables)
        if client.eval(_WRITE, 4, VERSION, TEAMS, KEYS, LOCKED, tables.version or b"0", *tables.changes):
            return result
    raise Contended


def unlock(client: BlockingRedis) -> int:
    """Deletes all keys and forgets that there were any; returns how many there were."""
    with client.pipeline(transaction=True) as pipe:
        pipe.hlen(KEYS)
        pipe.delete(KEYS)
        pipe.delete(LOCKED)  # apart: a pipeline to a cluster takes one key each
        pipe.incr(VERSION)
        count: int = pipe.execute()[0]
    return count
