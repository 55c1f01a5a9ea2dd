"""Redis as a router uses it: no call takes longer than the settings say, and while it is in trouble there is none."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from circuitbreaker import CircuitBreaker
from redis.exceptions import RedisError

from cluster.redis_client import connect_async

log = logging.getLogger("dray.store")

T = TypeVar("T")

_FAULTS_TO_OPEN = 3
_OPEN_S = 1
_LOG_EVERY_S = 30.0
_GRACE_S, _GRACES = 0.005, 3
"""What a call gets beyond its time, so often, for the event loop to take what has come meanwhile."""
_CONNECTIONS, _READERS = 64, 256
"""At a time: calls, and those that wait for news."""
BACKGROUND_EXTRA_S = 0.5
"""How much longer than the settings say a call may take that no client waits for."""
REDIS_ERRORS = (RedisError, OSError, TimeoutError)


class RedisUnavailable(Exception):
    """Redis is down, too slow, full, or refuses; or the circuit is open. What needs it goes on without."""


@dataclass(frozen=True, slots=True)
class RedisCallbacks:
    """Who is told of trouble. fault: of each failed call. open: of the circuit, when it opens and closes."""

    on_fault: Callable[[], None]
    on_circuit_change: Callable[[bool], None]


class RedisStore:
    """One Redis, for one router. Close it at the end."""

    def __init__(self, name: str, url: str, timeout_s: float, watchers: RedisCallbacks) -> None:
        """name: for log lines. timeout_s: the longest that a call may take."""
        self._name = name
        self._timeout_s = timeout_s
        self._watchers = watchers
        self._client = connect_async(url, most_connections=_CONNECTIONS)
        self._waiting_client = connect_async(url, most_connections=_READERS)
        self._breaker = CircuitBreaker(_FAULTS_TO_OPEN, _OPEN_S, REDIS_ERRORS, name)
        self._places = asyncio.Semaphore(_CONNECTIONS)
        self._readers = asyncio.Semaphore(_READERS)
        self._open = False
        self._logged = -_LOG_EVERY_S

    @property
    def circuit_open(self) -> bool:
        """Whether the circuit is open: no call is made."""
        return bool(self._breaker.opened)

    def script(self, text: str) -> "Script":
        """A Lua script, to be run here."""
        return Script(self, self._client.register_script(text))

    async def get(self, key: str) -> bytes | None:
        """The value at a key. Raises StoreAway."""
        return await self.call(lambda: self._client.get(key))

    async def execute(self, *command: Any) -> Any:
        """What any one command gives. Raises StoreAway."""
        return await self.call(lambda: self._client.execute_command(*command))

    async def transaction(self, fill: Callable[[Any], None]) -> list[Any]:
        """What commands give that go together, all or none. fill: puts them into a pipeline. Raises StoreAway."""

        async def go() -> list[Any]:
            async with self._client.pipeline(transaction=True) as pipe:
                fill(pipe)
                return list(await pipe.execute())

        return await self.call(go)

    async def entries(self, stream: str, start: bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Entries of a stream from this id (behind it, with a bracket before it). Raises StoreAway."""
        found: list[Any] = await self.call(lambda: self._client.xrange(stream, min=start))
        return [(number, fields) for number, fields in found]

    async def wait_for_entries(
        self, stream: str, after: bytes, wait_s: float
    ) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Entries of a stream behind the one of this id; waits for one, at most so long. Raises StoreAway."""
        block = max(1, int(1000 * wait_s))
        found = await self.call(
            lambda: self._waiting_client.xread({stream: after}, block=block), wait_s + BACKGROUND_EXTRA_S, self._readers
        )
        entries: list[Any] = [one for part in (found or {}).values() for several in part for one in several]
        return [(number, fields) for number, fields in entries]

    async def call(
        self, make: Callable[[], Awaitable[T]], extra_s: float = 0.0, places: asyncio.Semaphore | None = None
    ) -> T:
        """Awaits a call to Redis. extra_s: how much longer it may take than the settings say. Raises StoreAway."""
        # Waiting for a connection is no fault of Redis: it is not part of the time.
        async with places or self._places:
            if self._breaker.opened:
                raise RedisUnavailable(f"{self._name}: the circuit is open")
            try:
                async with _within(self._timeout_s + extra_s):
                    given = await make()
            except REDIS_ERRORS as error:
                self._fault(error)
                raise RedisUnavailable(f"{self._name}: {type(error).__name__}") from error
        # Not by the breaker's own context: that would take a cancelled call for a good one.
        self._breaker.reset()
        if self._open:
            self._open = False
            self._watchers.on_circuit_change(False)
            log.warning("Redis answers again", extra={"store": self._name})
        return given

    async def close(self) -> None:
        await self._client.aclose()
        await self._waiting_client.aclose()

    def _fault(self, error: Exception) -> None:
        self._watchers.on_fault()
        with suppress(*REDIS_ERRORS), self._breaker:
            raise error
        if self._breaker.opened and not self._open:
            self._open = True
            self._watchers.on_circuit_change(True)
        if time.monotonic() - self._logged > _LOG_EVERY_S:
            self._logged = time.monotonic()
            extra = {"store": self._name, "error": type(error).__name__, "circuit_open": self._open}
            log.warning("Redis is in trouble; going on without it until it answers", extra=extra)


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    """As asyncio.timeout, but for what lies ready by then: a busy event loop looks at its clock before it has taken
    what has come, and would call Redis slow for its own delay."""
    loop = asyncio.get_running_loop()

    def expire(limit: asyncio.Timeout, more: int) -> None:
        if more:
            timer[0] = loop.call_later(_GRACE_S, expire, limit, more - 1)
        else:
            limit.reschedule(loop.time())

    async with asyncio.timeout(None) as limit:
        timer: list[asyncio.Handle] = [loop.call_later(seconds, expire, limit, _GRACES)]
        try:
            yield
        finally:
            timer[0].cancel()


class Script:
    """A Lua script of a store."""

    def __init__(self, store: RedisStore, script: Any) -> None:
        self._store = store
        self._script = script

    async def __call__(self, keys: Sequence[str], *arguments: Any, extra_s: float = 0.0) -> Any:
        """What the script gives. extra_s: as `Store.call` takes it. Raises StoreAway."""
        return await self._store.call(lambda: self._script(keys=keys, args=arguments), extra_s)
