"""The Redis tables of teams and keys as stored, and how they are changed: all of a change or nothing, on what was read.

Two hash tables of records, a version that counts every change, a stream of the last changes, and a lock that outlives
the last key.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from cluster.records.client import BlockingRedis

T = TypeVar("T")

TEAMS, KEYS, VERSION = "dray:{teams}:teams", "dray:{teams}:keys", "dray:{teams}:version"
LOCKED = "dray:{teams}:locked"
"""Exists once a key has been created. From then on every request needs a key, even when no key is left."""
CHANGES = "dray:{teams}:changes"
"""The changes that led to the last versions, so that nobody reads all records because of one."""
_MAX_CHANGES = 1000
_MAX_RECORDS = 500
"""Records of a change that is kept. A larger one, and one by an earlier version of Dray, makes readers read all."""
_MAX_ATTEMPTS = 20

# Writes only if nobody has changed anything since the caller read this version.
# KEYS: version, teams, keys, lock, changes. ARGV: version; then of each change the table, the field, and its record
# or "".
_WRITE = f"""
if (redis.call('GET', KEYS[1]) or '0') ~= ARGV[1] then return 0 end
local keys = redis.call('HLEN', KEYS[3])
local change = {{}}
for i = 2, #ARGV, 3 do
  if ARGV[i + 2] == '' then redis.call('HDEL', ARGV[i], ARGV[i + 1])
  else redis.call('HSET', ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
  change[#change + 1] = ARGV[i] .. ' ' .. ARGV[i + 1]
  change[#change + 1] = ARGV[i + 2]
end
if keys + redis.call('HLEN', KEYS[3]) > 0 then redis.call('SET', KEYS[4], '1') end
local id = redis.call('INCR', KEYS[1]) .. '-1'
-- A stream of a higher version is refused: of data that have been lost since.
local kept = #change <= {2 * _MAX_RECORDS}
  and redis.pcall('XADD', KEYS[5], 'MAXLEN', '~', {_MAX_CHANGES}, id, unpack(change))
if type(kept) ~= 'string' then redis.call('DEL', KEYS[5]) end
return 1
"""


class Contended(Exception):
    """Others kept changing the tables."""


class Tables(NamedTuple):
    """All records, as read in one transaction."""

    version: bytes | None
    teams: dict[bytes, bytes]
    keys: dict[bytes, bytes]
    locked: bytes | None


class Edit:
    """The records at one version, read as they are asked for, and the changes to make to them."""

    def __init__(self, client: BlockingRedis) -> None:
        self._client = client
        self._version = client.get(VERSION) or b"0"
        self._changes: list[str | bytes] = []

    def read(self, table: str, name: str) -> bytes | None:
        """A record; None if there is none."""
        return self._client.hget(table, name)

    def read_all(self, table: str) -> dict[bytes, bytes]:
        """All records of a table."""
        return self._client.hgetall(table)

    def put(self, table: str, name: str, record: bytes) -> None:
        """Adds or replaces a record."""
        self._changes += [table, name, record]

    def delete(self, table: str, name: str) -> None:
        """Deletes a record."""
        self._changes += [table, name, b""]

    def write(self) -> bool:
        """Makes the changes, unless somebody has changed anything since."""
        keys = (VERSION, TEAMS, KEYS, LOCKED, CHANGES)
        return bool(self._client.eval(_WRITE, len(keys), *keys, self._version, *self._changes))


def read_tables(client: BlockingRedis) -> Tables:
    """All tables, read in one transaction."""
    with client.pipeline(transaction=True) as pipe:
        pipe.get(VERSION)
        pipe.hgetall(TEAMS)
        pipe.hgetall(KEYS)
        pipe.get(LOCKED)
        return Tables(*pipe.execute())


def edit_tables(client: BlockingRedis, change: Callable[[Edit], T]) -> T:
    """Makes a change as if nobody else made one meanwhile: otherwise starts again from what is there by then.

    change: notes its changes in the edit that it gets; it may run several times. Raises Contended.
    """
    for _ in range(_MAX_ATTEMPTS):
        edit = Edit(client)
        result = change(edit)
        if edit.write():
            return result
    raise Contended


def unlock(client: BlockingRedis) -> int:
    """Deletes all keys and forgets that there were any; returns how many there were."""
    with client.pipeline(transaction=True) as pipe:
        pipe.hlen(KEYS)
        pipe.delete(KEYS)
        pipe.delete(LOCKED)  # apart: a pipeline to a cluster takes one key each
        pipe.incr(VERSION)  # without an entry in the stream, so that all is read again
        count: int = pipe.execute()[0]
    return count
