"""The flights of all routers in Redis: their keys, the messages in them, and each atomic step as a Lua script.

Each flight has a lock, a stream of tokens and a sorted set of followers. Their names contain the answer's digest in
braces, as the answer's own key does, so all four keys are on one node of a Redis cluster.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from cluster.records.cache import WITHHELD, digest_of
from deployments.common.errors import ApiError
from deployments.common.messages import TokenBatch
from deployments.common.redis import BACKGROUND_EXTRA_S, RedisStore
from deployments.routing.queue_class import QueueClass

_LOCK_MS = 1200
_STREAM_MS = 30_000
_ENDED_MS = 10_000

# KEYS of every script: answer, lock, stream, followers. The lock's value is the flight's name and its leader's id.
_ACQUIRE = """
if ARGV[4] == '1' then
  local stored = redis.call('GET', KEYS[1])
  if stored then return {'stored', stored} end
end
local holder = redis.call('GET', KEYS[2])
if holder then return {'follow', holder} end
local flight, resumed = ARGV[1], '0'
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
if last and #last[2] == 4 then
  flight, resumed = last[2][2], '1'
elseif last then
  redis.call('DEL', KEYS[3])
end
redis.call('SET', KEYS[2], flight .. ARGV[2], 'PX', ARGV[3])
return {'lead', flight, resumed}
"""
_PUBLISH = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] .. ARGV[2] then return false end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
if ARGV[5] ~= '' then redis.call('XADD', KEYS[3], '*', 'flight', ARGV[1], 'records', ARGV[5]) end
redis.call('PEXPIRE', KEYS[3], ARGV[4])
local time = redis.call('TIME')
return redis.call('ZRANGEBYSCORE', KEYS[4], time[1] * 1000 + math.floor(time[2] / 1000), '+inf')
"""
_FOLLOW = """
local time = redis.call('TIME')
redis.call('ZADD', KEYS[4], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2], ARGV[1])
return redis.call('PEXPIRE', KEYS[4], ARGV[3])
"""
_END = """
if ARGV[3] ~= '' and redis.call('GETRANGE', KEYS[1], 0, 1) ~= ARGV[8] then
  redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[4])
end
if redis.call('GET', KEYS[2]) ~= ARGV[1] .. ARGV[2] then return 0 end
redis.call('XADD', KEYS[3], '*', 'flight', ARGV[1], 'records', ARGV[5], 'end', '1', 'error', ARGV[7])
redis.call('PEXPIRE', KEYS[3], ARGV[6])
return redis.call('DEL', KEYS[2])
"""
_LEAVE = """
redis.call('ZREM', KEYS[4], ARGV[5])
if redis.call('GET', KEYS[2]) ~= ARGV[1] .. ARGV[2] then return 0 end
if ARGV[3] ~= '' then redis.call('XADD', KEYS[3], '*', 'flight', ARGV[1], 'records', ARGV[3]) end
redis.call('PEXPIRE', KEYS[3], ARGV[4])
return redis.call('DEL', KEYS[2])
"""


class Record(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of one stage (the thinking generated apart, or the rest) of a choice, from the token at index `at` on."""

    choice: int
    stage: int
    at: int
    tokens: TokenBatch


class Follower(msgspec.Struct, frozen=True, array_like=True):
    """A router that follows, and the most urgent queue class among its clients."""

    router: str
    queue_class: QueueClass


class _Error(msgspec.Struct, frozen=True, array_like=True):
    """An ApiError."""

    status: int
    message: str
    kind: str
    code: str | None
    param: str | None


@dataclass(frozen=True, slots=True)
class Acquisition:
    """What a router got that asked for a lock.

    stored: the stored answer; if there is one, the other fields are empty.
    flight: the name of the flight. leads: whether the router has the lock. resumed: whether the stream has tokens of an
    earlier leader.
    """

    stored: bytes | None = None
    flight: str = ""
    leads: bool = False
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a stream. ended: nothing follows it. error: what the leader failed with."""

    id: bytes
    records: list[Record]
    ended: bool
    error: ApiError | None


class Diverged(Exception):
    """The stream does not continue what was read: it has another flight, garbage or a gap."""


_encode = msgspec.msgpack.Encoder().encode
_decode_records = msgspec.msgpack.Decoder(list[Record]).decode
_decode_follower = msgspec.msgpack.Decoder(Follower).decode
_decode_error = msgspec.msgpack.Decoder(_Error).decode


class FlightStore:
    """One router's access to the flights. Every method raises RedisUnavailable."""

    def __init__(self, store: RedisStore, router: str) -> None:
        """router: this router's id."""
        self.router = router
        self._store = store
        self._acquire = store.script(_ACQUIRE)
        self._publish = store.script(_PUBLISH)
        self._follow = store.script(_FOLLOW)
        self._end = store.script(_END)
        self._leave = store.script(_LEAVE)

    async def acquire(self, keys: list[str], name: str) -> Acquisition:
        """Reads the stored answer; without one, takes the lock if it is free. name: of the flight, if it is new."""
        return _acquisition(await self._acquire(keys, name, self.router, _LOCK_MS, "1"), name)

    async def take_over(self, keys: list[str], name: str) -> Acquisition:
        """Takes the lock if it is free, for a router that follows the flight of this name."""
        reply = await self._acquire(keys, name, self.router, _LOCK_MS, "0", extra_s=BACKGROUND_EXTRA_S)
        return _acquisition(reply, name)

    async def publish(self, keys: list[str], name: str, records: Sequence[Record]) -> list[Follower] | None:
        """Renews the lock and appends the records. Returns the followers; None if this router lost the lock."""
        arguments = (_LOCK_MS, _STREAM_MS, _batch(records))
        members = await self._publish(keys, name, self.router, *arguments, extra_s=BACKGROUND_EXTRA_S)
        if members is None:
            return None
        followers = []
        for member in members:
            with suppress(msgspec.MsgspecError):  # of another version of Dray
                followers.append(_decode_follower(member))
        return followers

    async def follow(self, keys: list[str], follower: Follower) -> None:
        """Registers a follower for as long as a lock lasts."""
        await self._follow(keys, _encode(follower), _LOCK_MS, _STREAM_MS, extra_s=BACKGROUND_EXTRA_S)

    async def read(self, keys: list[str], name: str, after: bytes, wait_s: float) -> list[Entry]:
        """The stream's entries after the one with this id; waits up to `wait_s` for one. Raises Diverged."""
        entries = await self._store.wait_for_entries(keys[2], after, wait_s)
        return [_entry(entry_id, fields, name) for entry_id, fields in entries]

    async def end(
        self,
        keys: list[str],
        name: str,
        records: Sequence[Record],
        *,
        answer: bytes = b"",
        ttl_s: int = 1,
        error: ApiError | None = None,
    ) -> None:
        """Stores the answer, unless it is empty or one is withheld at its key. Ends the flight, with its last records,
        if this router has the lock."""
        arguments = (answer, ttl_s, _batch(records), _ENDED_MS, _encode_error(error) if error else b"", WITHHELD)
        await self._end(keys, name, self.router, *arguments, extra_s=BACKGROUND_EXTRA_S)

    async def leave(self, keys: list[str], name: str, records: Sequence[Record], follower: Follower) -> None:
        """Stops following; gives the lock back, if this router has it."""
        arguments = (_batch(records), _STREAM_MS, _encode(follower))
        await self._leave(keys, name, self.router, *arguments, extra_s=BACKGROUND_EXTRA_S)


def flight_keys(answer_key: str) -> list[str]:
    """The keys of the flight that generates the answer at this key."""
    digest = digest_of(answer_key)
    return [answer_key, *(f"dray:{name}:{{{digest}}}" for name in ("lock", "tokens", "followers"))]


def _acquisition(reply: list[bytes], name: str) -> Acquisition:
    outcome, value = reply[:2]
    if outcome == b"stored":
        return Acquisition(stored=bytes(value))
    return Acquisition(flight=value[: len(name)].decode(), leads=outcome == b"lead", resumed=reply[-1] == b"1")


def _batch(records: Sequence[Record]) -> bytes:
    return _encode(records) if records else b""


def _encode_error(error: ApiError) -> bytes:
    detail = error.body.error
    return _encode(_Error(error.status, error.message, error.kind, detail.code, detail.param))


def _entry(entry_id: bytes, fields: dict[bytes, bytes], name: str) -> Entry:
    if fields.get(b"flight") != name.encode():
        raise Diverged
    try:
        records = _decode_records(fields[b"records"]) if fields[b"records"] else []
        failure = _decode_error(fields[b"error"]) if fields.get(b"error") else None
    except (KeyError, msgspec.MsgspecError):
        raise Diverged from None
    error = None
    if failure is not None:
        error = ApiError(failure.status, failure.message, code=failure.code, param=failure.param, kind=failure.kind)
    return Entry(entry_id, records, b"end" in fields, error)
