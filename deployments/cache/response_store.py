"""Responses that teams have stored: each with its conversation, for as long as the settings say.

A response contains the whole conversation before it, so going on from it reads one key, and removing an earlier one
breaks nothing. cluster.records.responses has the keys.

A response that is generated in the background is stored from its beginning, with the status that it has by then. Its
router holds a lease on it and renews that: a response that is not complete and has no lease has lost its router. Taking
the lease away cancels the generation.
"""

import re
import secrets
import time
from collections.abc import Callable

import msgspec

from cluster.records.cache import pack, unpack
from cluster.records.responses import ids_key, response_key, running_key
from cluster.settings import ResponseSettings
from deployments.common.redis import BACKGROUND_EXTRA_S, RedisStore, RedisUnavailable

_ID = re.compile(r"resp_[0-9a-f]{48}")

_LEASE_S = 10.0

# KEYS: the response, the owner's ids. ARGV: id, value, seconds to keep it, time, maximum number, beginning of the keys.
_STORE = """
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. (ARGV[4] - ARGV[3]))
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -ARGV[5] - 1)) do
  redis.call('UNLINK', ARGV[6] .. id)
  redis.call('ZREM', KEYS[2], id)
end
redis.call('EXPIRE', KEYS[2], ARGV[3])
"""
_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
_PUT = f"{_STORE} return 1"
# The same, with a third key: the ids of the owner's responses that run, by the time at which their leases expire.
# ARGV: also the lease in ms, and how many may run.
_BEGIN = f"""
{_NOW}
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
if redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[8]) then return 0 end
redis.call('ZADD', KEYS[3], now + ARGV[7], ARGV[1])
redis.call('PEXPIRE', KEYS[3], ARGV[7])
{_STORE}
return 1
"""
_END = f"""
if redis.call('ZREM', KEYS[3], ARGV[1]) == 0 then return 0 end
{_STORE}
return 1
"""
# KEYS: the response, the ids of those that run. ARGV: id, lease in ms, the response by now or nothing.
_RENEW = f"""
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
{_NOW}
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
if ARGV[3] ~= '' then redis.call('SET', KEYS[1], ARGV[3], 'XX', 'KEEPTTL') end
return 1
"""
# ARGV: id, the response as it was read, the one that takes its place, and 1 if its router may still have the lease.
_SETTLE = f"""
{_NOW}
if redis.call('GET', KEYS[1]) ~= ARGV[2] then return 0 end
local expires = redis.call('ZSCORE', KEYS[2], ARGV[1])
if ARGV[4] == '0' and expires and tonumber(expires) > now then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('SET', KEYS[1], ARGV[3], 'XX', 'KEEPTTL')
return 1
"""


class StoredResponse(msgspec.Struct, frozen=True, array_like=True):
    """A response as it was sent, and the items before it, each as JSON. user: the tag of who asked."""

    response: bytes
    items: tuple[bytes, ...]
    user: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(StoredResponse).decode


def new_response_id() -> str:
    """An id that nobody can guess: it is all that a team needs to read its response."""
    return f"resp_{secrets.token_hex(24)}"


class ResponseStore:
    """One router's access to the stored responses of all teams."""

    def __init__(self, settings: ResponseSettings, store: RedisStore, lease_s: float = _LEASE_S) -> None:
        """lease_s: how long a response that is generated in the background waits for a sign of life of its router."""
        self.lease_s = lease_s
        self._settings = settings
        self._store = store
        self._put, self._begin, self._end = (store.script(text) for text in (_PUT, _BEGIN, _END))
        self._renew, self._settle = store.script(_RENEW), store.script(_SETTLE)

    def fits(self, stored: StoredResponse) -> bool:
        """Whether it is small enough to be stored."""
        return len(stored.response) + sum(map(len, stored.items)) <= self._settings.max_bytes

    async def put(self, owner: str, response_id: str, stored: StoredResponse) -> bool:
        """Stores a response; whether that worked: not if it is too large, nor while Redis is away."""
        if not self.fits(stored):
            return False
        try:
            await self._put(*self._arguments(owner, response_id, stored))
        except RedisUnavailable:
            return False
        return True

    async def begin(self, owner: str, response_id: str, stored: StoredResponse) -> bool:
        """Stores a response that runs, with a lease; False if too many of the owner's run. Raises RedisUnavailable."""
        keys, *arguments = self._arguments(owner, response_id, stored)
        limits = (self._lease_ms, self._settings.max_background)
        return bool(await self._begin([*keys, running_key(owner)], *arguments, *limits))

    async def renew(self, owner: str, response_id: str, stored: StoredResponse | None = None) -> bool:
        """Renews a lease; whether it was still there. stored: the response by now. Raises RedisUnavailable."""
        keys = [response_key(owner, response_id), running_key(owner)]
        value = pack(_encode(stored), keys[0]) if stored else b""
        return bool(await self._renew(keys, response_id, self._lease_ms, value, extra_s=BACKGROUND_EXTRA_S))

    async def end(self, owner: str, response_id: str, stored: StoredResponse) -> bool:
        """Stores the response at its end; False without a lease, as it was cancelled. Raises RedisUnavailable."""
        keys, *arguments = self._arguments(owner, response_id, stored)
        return bool(await self._end([*keys, running_key(owner)], *arguments, extra_s=BACKGROUND_EXTRA_S))

    async def settle(
        self, owner: str, response_id: str, change: Callable[[StoredResponse], StoredResponse | None], *, cancel: bool
    ) -> StoredResponse | None:
        """The owner's response, changed and without a lease if `change` gives another one; None if there is none.

        cancel: whether to change it although its router still has the lease. Raises RedisUnavailable.
        """
        if not _ID.fullmatch(response_id):
            return None
        keys = [response_key(owner, response_id), running_key(owner)]
        while (value := await self._store.get(keys[0])) and (stored := _decoded(value, keys[0])) is not None:
            if (changed := change(stored)) is None:
                return stored
            if await self._settle(keys, response_id, value, pack(_encode(changed), keys[0]), int(cancel)):
                return changed
            if not cancel:
                return stored
        return None

    async def get(self, owner: str, response_id: str) -> StoredResponse | None:
        """The owner's response; None if there is none with this id. Raises RedisUnavailable."""
        if not _ID.fullmatch(response_id):
            return None
        key = response_key(owner, response_id)
        value = await self._store.get(key)
        return _decoded(value, key) if value else None

    async def delete(self, owner: str, response_id: str) -> bool:
        """Removes the owner's response; whether there was one. Raises RedisUnavailable."""
        if not _ID.fullmatch(response_id):
            return False
        removed = await self._store.execute("UNLINK", response_key(owner, response_id))
        await self._store.execute("ZREM", ids_key(owner), response_id)
        await self._store.execute("ZREM", running_key(owner), response_id)
        return bool(removed)

    @property
    def _lease_ms(self) -> int:
        return int(1000 * self.lease_s)

    def _arguments(self, owner: str, response_id: str, stored: StoredResponse) -> tuple[list[str], *tuple[object, ...]]:
        """The keys and the arguments of the scripts that store a response."""
        settings, keys = self._settings, [response_key(owner, response_id), ids_key(owner)]
        value, now, prefix = pack(_encode(stored), keys[0]), f"{time.time():.3f}", response_key(owner, "")
        return keys, response_id, value, settings.ttl_s, now, settings.max_per_team, prefix


def _decoded(value: bytes, key: str) -> StoredResponse | None:
    body = unpack(value, key)
    try:
        return _decode(body) if body is not None else None
    except msgspec.MsgspecError:
        return None
