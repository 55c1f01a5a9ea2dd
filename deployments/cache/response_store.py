"""Responses that teams have stored: each with its conversation, for as long as the settings say.

A response contains the whole conversation before it, so going on from it reads one key, and removing an earlier one
breaks nothing. cluster.records.responses has the keys.
"""

import re
import secrets
import time

import msgspec

from cluster.records.cache import pack, unpack
from cluster.records.responses import ids_key, response_key
from cluster.settings import ResponseSettings
from deployments.common.redis import RedisStore, RedisUnavailable

_ID = re.compile(r"resp_[0-9a-f]{48}")

# KEYS: the response, the owner's ids. ARGV: id, value, seconds to keep it, time, maximum number, beginning of the keys.
_PUT = """
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. (ARGV[4] - ARGV[3]))
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -ARGV[5] - 1)) do
  redis.call('UNLINK', ARGV[6] .. id)
  redis.call('ZREM', KEYS[2], id)
end
return redis.call('EXPIRE', KEYS[2], ARGV[3])
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

    def __init__(self, settings: ResponseSettings, store: RedisStore) -> None:
        self._settings = settings
        self._store = store
        self._put = store.script(_PUT)

    async def put(self, owner: str, response_id: str, stored: StoredResponse) -> bool:
        """Stores a response; whether that worked: not if it is too large, nor while Redis is away."""
        if len(stored.response) + sum(map(len, stored.items)) > self._settings.max_bytes:
            return False
        settings, value, now = self._settings, pack(_encode(stored)), f"{time.time():.3f}"
        keys = [response_key(owner, response_id), ids_key(owner)]
        try:
            await self._put(
                keys, response_id, value, settings.ttl_s, now, settings.max_per_team, response_key(owner, "")
            )
        except RedisUnavailable:
            return False
        return True

    async def get(self, owner: str, response_id: str) -> StoredResponse | None:
        """The owner's response; None if there is none with this id. Raises RedisUnavailable."""
        if not _ID.fullmatch(response_id):
            return None
        value = await self._store.get(response_key(owner, response_id))
        body = unpack(value) if value else None
        try:
            return _decode(body) if body is not None else None
        except msgspec.MsgspecError:
            return None

    async def delete(self, owner: str, response_id: str) -> bool:
        """Removes the owner's response; whether there was one. Raises RedisUnavailable."""
        if not _ID.fullmatch(response_id):
            return False
        removed = await self._store.execute("UNLINK", response_key(owner, response_id))
        await self._store.execute("ZREM", ids_key(owner), response_id)
        return bool(removed)
