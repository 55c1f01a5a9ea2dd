"""Single flight across routers: one leads and generates, the others follow its tokens through Redis as they come.

For each question under way there is a lock and a stream of tokens. Who takes the lock leads: it renews the lock while
it generates and appends what comes to the stream, in batches. The others read the stream from its beginning. When the
leader dies, its lock expires, and a follower takes it: it has read all tokens so far, and goes on from them. Nothing
can be appended without the lock, so there is one leader at a time; each batch says at which token it begins, so a gap
would be seen. Who cannot go on with Redis goes on alone. A stream whose leader went with nobody following stays for a
while: the next who asks the same goes on from there.
"""

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Literal

import msgspec

from deployments.common.messages import TokenBatch
from deployments.common.redis import BACKGROUND_EXTRA_S, RedisStore, RedisUnavailable, Script

log = logging.getLogger("dray.flights")

_LOCK_MS = 1200
_RENEW_S = 0.3
_FOLLOWED_S, _UNFOLLOWED_S = 0.05, 0.25
"""Between two batches: while somebody follows, and while nobody does."""
_STREAM_MS = 30_000
_ENDED_MS = 10_000
_NAME_BYTES = 8

# KEYS of all: answer, lock, stream, followers. The lock's value is the flight's name and its leader's.
_BEGIN = """
if ARGV[4] == '1' then
  local known = redis.call('GET', KEYS[1])
  if known then return {'known', known} end
end
local held = redis.call('GET', KEYS[2])
if held then return {'follow', held} end
local flight = ARGV[1]
local carried = '0'
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
if last and #last[2] == 4 then
  flight = last[2][2]
  carried = '1'
elseif last then
  redis.call('DEL', KEYS[3])
end
redis.call('SET', KEYS[2], flight .. ARGV[2], 'PX', ARGV[3])
return {'lead', flight, carried}
"""
_PUBLISH = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] .. ARGV[2] then return -1 end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
if ARGV[5] ~= '' then redis.call('XADD', KEYS[3], '*', 'flight', ARGV[1], 'records', ARGV[5]) end
redis.call('PEXPIRE', KEYS[3], ARGV[4])
local time = redis.call('TIME')
return redis.call('ZCOUNT', KEYS[4], time[1] * 1000 + math.floor(time[2] / 1000), '+inf')
"""
_FOLLOW = """
local time = redis.call('TIME')
redis.call('ZADD', KEYS[4], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2], ARGV[1])
return redis.call('PEXPIRE', KEYS[4], ARGV[3])
"""
_END = """
if ARGV[3] ~= '' then redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[4]) end
if redis.call('GET', KEYS[2]) ~= ARGV[1] .. ARGV[2] then return 0 end
redis.call('XADD', KEYS[3], '*', 'flight', ARGV[1], 'records', ARGV[5], 'end', '1')
redis.call('PEXPIRE', KEYS[3], ARGV[6])
return redis.call('DEL', KEYS[2])
"""
_LEAVE = """
redis.call('ZREM', KEYS[4], ARGV[2])
if redis.call('GET', KEYS[2]) ~= ARGV[1] .. ARGV[2] then return 0 end
if ARGV[3] ~= '' then redis.call('XADD', KEYS[3], '*', 'flight', ARGV[1], 'records', ARGV[3]) end
redis.call('PEXPIRE', KEYS[3], ARGV[4])
return redis.call('DEL', KEYS[2])
"""


class Record(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of a choice's stage (thinking apart, or all) that begin behind the first `at` of it."""

    choice: int
    stage: int
    at: int
    tokens: TokenBatch


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Record]).decode


class _Diverged(Exception):
    """What the stream holds does not follow what was read: another flight, garbage, or a gap."""


Role = Literal["lead", "follow", "alone"]


class SingleFlight:
    """A router's door to the flights of all routers."""

    def __init__(self, store: RedisStore) -> None:
        self.store = store
        self.me = secrets.token_hex(_NAME_BYTES)
        self.begin = store.script(_BEGIN)
        self.publish = store.script(_PUBLISH)
        self.follow = store.script(_FOLLOW)
        self.end = store.script(_END)
        self.leave = store.script(_LEAVE)

    async def acquire(self, answer_key: str, digest: str) -> "bytes | FlightLease":
        """The stored answer where there is one by now; else the flight, led or followed. Raises StoreAway."""
        keys = [answer_key, *(f"dray:{what}:{{{digest}}}" for what in ("lock", "tokens", "followers"))]
        mine = secrets.token_hex(_NAME_BYTES)
        found = await self.begin(keys, mine, self.me, _LOCK_MS, "1")
        if found[0] == b"known":
            return bytes(found[1])
        flight = FlightLease(self, keys, found[1][: 2 * _NAME_BYTES].decode())
        flight.start(leads=found[0] == b"lead", carried=found[-1] == b"1")
        return flight


class FlightLease:
    """One flight. Its user reads `recorded`, and makes what is missing itself, telling it by `record`."""

    def __init__(self, flights: SingleFlight, keys: list[str], name: str) -> None:
        self.name = name
        self.role: Role = "follow"
        self.joined = False
        """Whether another led when this router came."""
        self._flights = flights
        self._keys = keys
        self._seen = b"0"
        self._records: defaultdict[tuple[int, int], list[TokenBatch]] = defaultdict(list)
        self._sizes: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._pending: list[Record] = []
        self._followed = 0
        self._complete = False
        self._ended = False
        self._publishing = asyncio.Lock()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, *, leads: bool, carried: bool) -> None:
        """Begins to lead or to follow. carried: another has led before, and its tokens are there."""
        self.joined = not leads
        if leads and not carried:
            self._become("lead")
        self._task = asyncio.create_task(self._go(leads=leads))

    async def follow(self, choice: int, stage: int) -> AsyncGenerator[TokenBatch, None]:
        """Tokens that a leader has made, as they come. Ends without a finish where the rest is one's own to make."""
        told = self._records[choice, stage]
        place = 0
        while True:
            while place < len(told):
                yield told[place]
                place += 1
            if (told and told[-1].finish_reason) or self.role != "follow":
                return
            news = self._news
            await news.wait()

    def record(self, choice: int, stage: int, tokens: TokenBatch) -> None:
        """Tells the followers of tokens that were made here."""
        at = self._sizes[choice, stage]
        self._sizes[choice, stage] += len(tokens.ids)
        if self.role == "lead":
            self._pending.append(Record(choice, stage, at, tokens))

    async def has_followers(self) -> bool:
        """Whether this router leads and another follows."""
        if self.role != "lead":
            return False
        try:
            await self._publish()
        except RedisUnavailable:
            return False
        return self._followed > 0

    async def complete(self, answer: bytes, ttl_s: int) -> None:
        """The flight is over, and this is its packed answer to keep; empty: none."""
        await self._stop()
        if self.role == "lead" or (self.role == "alone" and answer):
            await self._last(self._flights.end, answer, max(1, ttl_s), self._batch(), _ENDED_MS)

    async def release(self) -> None:
        """This router does not go on with it; another may. Without effect once it has landed."""
        if not self._ended:
            await self._stop()
            await self._last(self._flights.leave, self._batch(), _STREAM_MS)

    async def _last(self, script: Script, *arguments: object) -> None:
        with suppress(RedisUnavailable):  # lock and stream expire by themselves
            await script(self._keys, self.name, self._flights.me, *arguments, extra_s=BACKGROUND_EXTRA_S)

    async def _stop(self) -> None:
        self._ended = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _go(self, *, leads: bool) -> None:
        try:
            if not leads:
                leads = await self._follow()
            elif self.role != "lead":
                leads = await self._catch_up()
            if leads:
                self._become("lead")
                await self._lead()
        except (RedisUnavailable, _Diverged):
            self._become("alone")
        except Exception:
            # Whatever it is, those who wait here must not wait for ever.
            self._become("alone")
            log.exception("a flight is gone on with alone")

    async def _follow(self) -> bool:
        """Reads until the end, or until the leader has gone; then whether this router leads."""
        while True:
            await self._flights.follow(self._keys, self._flights.me, _LOCK_MS, _STREAM_MS, extra_s=BACKGROUND_EXTRA_S)
            if await self._read(_RENEW_S):
                if self._complete:
                    return False
                continue
            found = await self._flights.begin(
                self._keys, self.name, self._flights.me, _LOCK_MS, "0", extra_s=BACKGROUND_EXTRA_S
            )
            if found[1][: len(self.name)] != self.name.encode():
                raise _Diverged
            if found[0] == b"lead":
                return await self._catch_up()

    async def _catch_up(self) -> bool:
        """Reads what was told before this router took the lock. Then nothing can be told without it."""
        while await self._read(0.0):
            pass
        return not self._complete

    async def _read(self, wait_s: float) -> bool:
        """Takes what is new in the stream; whether there was anything. Raises _Apart where it does not fit."""
        entries = await self._flights.store.wait_for_entries(self._keys[2], self._seen, wait_s)
        for number, fields in entries:
            self._seen = number
            if fields.get(b"flight") != self.name.encode():
                raise _Diverged
            try:
                records = _decode(fields[b"records"]) if fields[b"records"] else []
            except (KeyError, msgspec.MsgspecError):
                raise _Diverged from None
            for one in records:
                key = one.choice, one.stage
                if one.at + len(one.tokens.ids) <= self._sizes[key] and one.tokens.ids:
                    continue  # told twice: the leader did not hear that the first time went well
                if one.at != self._sizes[key]:
                    raise _Diverged
                self._sizes[key] += len(one.tokens.ids)
                self._records[key].append(one.tokens)
            self._complete = self._complete or b"end" in fields
        if entries:
            self._wake()
        return bool(entries)

    async def _lead(self) -> None:
        """Renews the lock and tells what was made, until cancelled, or until the lock is another's."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while self.role == "lead":
            await asyncio.sleep(_FOLLOWED_S if self._followed else _UNFOLLOWED_S)
            if self._pending or loop.time() - renewed > _RENEW_S:
                with suppress(RedisUnavailable):  # what was not told is told with the next
                    await self._publish()
                    renewed = loop.time()

    async def _publish(self) -> None:
        # One at a time: two would tell the same tokens.
        async with self._publishing:
            count = len(self._pending)
            told = await self._flights.publish(
                self._keys, self.name, self._flights.me, _LOCK_MS, _STREAM_MS, self._batch(), extra_s=BACKGROUND_EXTRA_S
            )
            if told < 0:
                log.info("another router leads this flight now; going on alone")
                self._followed = 0
                self._become("alone")
                return
            del self._pending[:count]
            self._followed = told

    def _batch(self) -> bytes:
        return _encode(self._pending) if self._pending else b""

    def _become(self, place: Role) -> None:
        self.role = place
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
