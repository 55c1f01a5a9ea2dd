"""The flights of all routers in Redis: their keys, the messages in them, and each atomic step as a Lua script.

Each flight has a leader and, where its tokens are wanted, a stream of them. Their names contain the answer's digest in
braces, as the answer's own key does, so all three keys are on one node of a Redis cluster.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from cluster.records.cache import WITHHELD, digest_of
from cluster.records.sealing import seal, unseal
from deployments.common.errors import ApiError
from deployments.common.messages import TokenBatch
from deployments.common.redis import BACKGROUND_EXTRA_S, RedisStore, RedisUnavailable

LEAD_MS = 180_000
"""For so long a router leads a flight, and its tokens are kept, without renewal."""
_LEFT_MS = 30_000
_ENDED_MS = 10_000
ID_BYTES = 8
"""Of flights and routers, which are written as twice as many hexadecimal digits."""

_WANTED = 2
"""Reply of the script that ends a flight, if its records are needed and are missing."""

# KEYS of every script: answer, leader, stream. The leader's value is the flight's name, its router's id, and a plus
# sign once another router has asked for the flight. ARGV 1 and 2: a flight's name and this router's id.
_LEADS = f"""
local holder = redis.call('GET', KEYS[2])
local leads = holder and string.sub(holder, 1, {4 * ID_BYTES}) == ARGV[1] .. ARGV[2]
"""
# ARGV 3: ms. 4: whether to read the answer. 5: a router that is dead, or empty. 6: the mark of the new leader's value.
_ACQUIRE = f"""
if ARGV[4] == '1' then
  local stored = redis.call('GET', KEYS[1])
  if stored then return {{'stored', stored}} end
end
local holder = redis.call('GET', KEYS[2])
local flight = ARGV[1]
if holder then
  local leader = string.sub(holder, {2 * ID_BYTES + 1}, {4 * ID_BYTES})
  if leader ~= ARGV[5] then
    if #holder == {4 * ID_BYTES} then redis.call('SET', KEYS[2], holder .. '+', 'PX', ARGV[3]) end
    return {{'follow', holder}}
  end
  flight = string.sub(holder, 1, {2 * ID_BYTES})
end
local resumed = '0'
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
if ARGV[4] == '0' and last and #last[2] > 4 and last[2][2] == ARGV[1] then
  return {{'follow', ARGV[1] .. ARGV[2]}}  -- it has ended since this router read last: it reads again
end
if last and #last[2] == 4 and (not holder or last[2][2] == flight) then
  flight, resumed = last[2][2], '1'
elseif last then
  redis.call('DEL', KEYS[3])
end
redis.call('SET', KEYS[2], flight .. ARGV[2] .. ARGV[6], 'PX', ARGV[3])
return {{'lead', flight .. ARGV[2], resumed}}
"""
# ARGV 3: ms. 4: records, or empty.
_PUBLISH = f"""{_LEADS}
if not leads then return 0 end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
if ARGV[4] ~= '' then redis.call('XADD', KEYS[3], '*', 'flight', ARGV[1], 'records', ARGV[4]) end
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return 1
"""
# ARGV 3, 4: the answer, or empty, and its seconds. 5: records. 6: ms. 7: an error, or empty. 8: whether the records are
# written only if another router has asked for the flight. 9: the value of an answer that is withheld.
_END = f"""
if ARGV[3] ~= '' and redis.call('GETRANGE', KEYS[1], 0, 1) ~= ARGV[9] then
  redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[4])
end
{_LEADS}
if not leads then return 0 end
if ARGV[8] == '0' then
  redis.call('XADD', KEYS[3], '*', 'flight', ARGV[1], 'records', ARGV[5], 'end', '1', 'error', ARGV[7])
  redis.call('PEXPIRE', KEYS[3], ARGV[6])
elseif #holder > {4 * ID_BYTES} then
  return {_WANTED}
end
redis.call('DEL', KEYS[2])
return 1
"""
# ARGV 3: records, or empty. 4: ms.
_LEAVE = f"""{_LEADS}
if not leads then return 0 end
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
    flight: the name of the flight. leader: the router that leads it. leads: whether that is the one that asked.
    resumed: whether the stream has tokens of an earlier leader.
    """

    stored: bytes | None = None
    flight: str = ""
    leader: str = ""
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
_decode_error = msgspec.msgpack.Decoder(_Error).decode


class FlightStore:
    """One router's access to the flights. Every method raises RedisUnavailable."""

    def __init__(self, store: RedisStore, router: str) -> None:
        """router: this router's id."""
        self.router = router
        self._store = store
        self._acquire = store.script(_ACQUIRE)
        self._publish = store.script(_PUBLISH)
        self._end = store.script(_END)
        self._leave = store.script(_LEAVE)
        self._publishing: list[tuple[list[str], Sequence[object], asyncio.Future[bool]]] = []
        self._task: asyncio.Task[None] | None = None

    async def acquire(self, keys: list[str], name: str) -> Acquisition:
        """Reads the stored answer; without one, leads the flight if nobody does. name: of the flight, if it is new."""
        return _acquisition(await self._acquire(keys, name, self.router, LEAD_MS, "1", "", ""))

    async def take_over(self, keys: list[str], name: str, dead: str = "") -> Acquisition:
        """Leads the flight of this name if nobody does, or a router that is dead."""
        arguments = (LEAD_MS, "0", dead, "+")  # other followers may be left
        reply = await self._acquire(keys, name, self.router, *arguments, extra_s=BACKGROUND_EXTRA_S)
        return _acquisition(reply)

    async def publish(self, keys: list[str], name: str, records: Sequence[Record]) -> bool:
        """Goes on leading, and appends the records. Returns whether this router still leads.

        What several flights publish in one turn of the event loop goes to Redis together.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._publishing.append((keys, (name, self.router, LEAD_MS, _batch(records, keys, name)), future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._publish_all())
        return await future

    async def _publish_all(self) -> None:
        while self._publishing:
            batch, self._publishing = self._publishing, []
            try:
                replies = await self._publish.run_all([(keys, arguments) for keys, arguments, _ in batch])
            except RedisUnavailable as error:
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, _, future), reply in zip(batch, replies, strict=True):
                if future.done():
                    continue
                if isinstance(reply, Exception):
                    future.set_exception(RedisUnavailable(str(reply)))
                else:
                    future.set_result(reply == 1)

    async def read(self, keys: list[str], name: str, after: bytes, wait_s: float) -> list[Entry]:
        """The stream's entries after the one with this id; waits up to `wait_s` for one. Raises Diverged."""
        entries = await self._store.wait_for_entries(keys[2], after, wait_s)
        return [_entry(entry_id, fields, keys, name) for entry_id, fields in entries]

    async def end(
        self,
        keys: list[str],
        name: str,
        records: Sequence[Record],
        *,
        answer: bytes = b"",
        ttl_s: int = 1,
        error: ApiError | None = None,
        only_if_wanted: bool = False,
    ) -> None:
        """Stores the answer, unless it is empty or one is withheld at its key. Ends the flight, with its last records,
        if this router leads it.

        only_if_wanted: the records need not be written if no other router has asked for the flight.
        """
        ending = (answer, max(1, ttl_s), b"" if only_if_wanted else _batch(records, keys, name), _ENDED_MS)
        failure = seal(_encode_error(error), _place(keys, name)) if error else b""
        reply = await self._end(
            keys, name, self.router, *ending, failure, int(only_if_wanted), WITHHELD, extra_s=BACKGROUND_EXTRA_S
        )
        if reply == _WANTED:
            await self.end(keys, name, records, error=error)

    async def leave(self, keys: list[str], name: str, records: Sequence[Record] = ()) -> None:
        """Gives the flight up, with the records for whoever goes on with it, if this router leads it."""
        await self._leave(keys, name, self.router, _batch(records, keys, name), _LEFT_MS, extra_s=BACKGROUND_EXTRA_S)


def flight_keys(answer_key: str) -> list[str]:
    """The keys of the flight that generates the answer at this key."""
    digest = digest_of(answer_key)
    return [answer_key, *(f"dray:{name}:{{{digest}}}" for name in ("leader", "tokens"))]


def _acquisition(reply: list[bytes]) -> Acquisition:
    outcome, value = reply[:2]
    if outcome == b"stored":
        return Acquisition(stored=bytes(value))
    flight, leader = (value[start : start + 2 * ID_BYTES].decode() for start in (0, 2 * ID_BYTES))
    return Acquisition(None, flight, leader, outcome == b"lead", reply[-1] == b"1")


def _batch(records: Sequence[Record], keys: list[str], name: str) -> bytes:
    return seal(_encode(records), _place(keys, name)) if records else b""


def _place(keys: list[str], name: str) -> str:
    return f"{keys[2]} {name}"


def _opened(value: bytes, keys: list[str], name: str) -> bytes:
    if (body := unseal(value, _place(keys, name))) is None:
        raise Diverged
    return body


def _encode_error(error: ApiError) -> bytes:
    detail = error.body.error
    return _encode(_Error(error.status, error.message, error.kind, detail.code, detail.param))


def _entry(entry_id: bytes, fields: dict[bytes, bytes], keys: list[str], name: str) -> Entry:
    if fields.get(b"flight") != name.encode():
        raise Diverged
    try:
        records = _decode_records(_opened(fields[b"records"], keys, name)) if fields[b"records"] else []
        failure = _decode_error(_opened(fields[b"error"], keys, name)) if fields.get(b"error") else None
    except (KeyError, msgspec.MsgspecError):
        raise Diverged from None
    error = None
    if failure is not None:
        error = ApiError(failure.status, failure.message, code=failure.code, param=failure.param, kind=failure.kind)
    return Entry(entry_id, records, b"end" in fields, error)
