"""Redis as a router uses it: every call is bounded in time, and a circuit breaker stops calls while Redis fails."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, Protocol, TypeVar

from circuitbreaker import CircuitBreaker
from redis.exceptions import NoScriptError, RedisError

from cluster.records.client import Pipeline
from cluster.redis_client import connect_async

log = logging.getLogger("dray.store")

T = TypeVar("T")

_FAILURES_TO_OPEN = 3
_OPEN_S = 1
_LOG_INTERVAL_S = 30.0
_GRACE_S, _GRACE_PERIODS = 0.005, 3
"""Extra time for a call, granted this many times, so that the event loop can read replies that have arrived."""
_MAX_CALLS, _MAX_BLOCKING_READS = 64, 256
"""Concurrent calls, and concurrent reads that wait for new stream entries."""
BACKGROUND_EXTRA_S = 0.5
"""Extra time for calls that no client waits for."""
REDIS_ERRORS = (RedisError, OSError, TimeoutError)

StreamEntries = list[tuple[bytes, dict[bytes, bytes]]]
"""Entries of a Redis stream: id and fields."""


class RedisUnavailable(Exception):
    """Redis is down, too slow, full or refuses, or the circuit is open. Callers continue without it."""


class AsyncPipeline(Pipeline, Protocol):
    """A pipeline of an asyncio client."""

    def execute_command(self, *arguments: Any) -> object: ...
    async def execute(self, raise_on_error: bool = True) -> list[Any]: ...


class _Client(Protocol):
    """The part of redis-py's asyncio clients (single server, Sentinel, Cluster) that is used here."""

    def get(self, name: str) -> Awaitable[bytes | None]: ...
    def execute_command(self, *arguments: Any) -> Awaitable[Any]: ...
    def pipeline(self, transaction: bool) -> AbstractAsyncContextManager[AsyncPipeline]: ...
    def xrange(self, name: str, min: bytes, count: int | None = None) -> Awaitable[StreamEntries]: ...
    def xread(self, streams: dict[str, bytes], block: int) -> Awaitable[dict[bytes, list[StreamEntries]] | None]: ...
    def hscan(self, name: str, cursor: int, *, count: int) -> Awaitable[tuple[int, dict[bytes, bytes]]]: ...
    def register_script(self, script: str) -> Callable[..., Awaitable[Any]]: ...
    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class RedisCallbacks:
    """Called when Redis fails. on_fault: after each failed call. on_circuit_change: with True when the circuit opens
    and False when it closes."""

    on_fault: Callable[[], None]
    on_circuit_change: Callable[[bool], None]


class RedisStore:
    """One Redis, for one router. Close it at the end."""

    def __init__(self, name: str, url: str, timeout_s: float, callbacks: RedisCallbacks) -> None:
        """name: for log lines. timeout_s: maximum duration of a call."""
        self._name = name
        self._timeout_s = timeout_s
        self._callbacks = callbacks
        self._client: _Client = connect_async(url, max_connections=_MAX_CALLS)
        # One more for the router's inbox, which has a place of its own (deployments.cache.presence).
        self._blocking_client: _Client = connect_async(url, max_connections=_MAX_BLOCKING_READS + 1)
        self._breaker = CircuitBreaker(_FAILURES_TO_OPEN, _OPEN_S, REDIS_ERRORS, name)
        self._calls = asyncio.Semaphore(_MAX_CALLS)
        self._blocking_reads = asyncio.Semaphore(_MAX_BLOCKING_READS)
        self._open = False
        self.closed = False
        """Whether it was closed, so that every further call fails."""
        self._logged_at = -_LOG_INTERVAL_S

    @property
    def circuit_open(self) -> bool:
        """Whether calls are skipped because recent ones failed."""
        return bool(self._breaker.opened)

    def script(self, text: str) -> "Script":
        """A Lua script that runs in this Redis."""
        return Script(self, text, self._client.register_script(text))

    async def get(self, key: str) -> bytes | None:
        """The value of a key. Raises RedisUnavailable."""
        return await self.call(lambda: self._client.get(key))

    async def execute(self, *command: Any, extra_s: float = 0.0) -> Any:
        """The reply to any single command. extra_s: added to the store's timeout. Raises RedisUnavailable."""
        return await self.call(lambda: self._client.execute_command(*command), extra_s)

    async def transaction(self, queue: Callable[[Pipeline], object]) -> list[Any]:
        """Runs commands atomically and returns their replies. queue: adds the commands to a pipeline.

        Raises RedisUnavailable.
        """

        async def run() -> list[Any]:
            async with self._client.pipeline(transaction=True) as pipeline:
                queue(pipeline)
                return list(await pipeline.execute())

        return await self.call(run)

    async def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Runs commands in one round trip, though not atomically. A reply may be an error of Redis.

        No client waits for it. Raises RedisUnavailable.
        """

        async def run() -> list[Any]:
            async with self._client.pipeline(transaction=False) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                return list(await pipeline.execute(raise_on_error=False))

        return await self.call(run, BACKGROUND_EXTRA_S)

    async def entries(self, stream: str, start: bytes, count: int) -> StreamEntries:
        """The first entries of a stream from this id on; an id that begins with "(" is excluded.

        Raises RedisUnavailable.
        """
        return list(await self.call(lambda: self._client.xrange(stream, min=start, count=count)))

    async def scan_hash(self, name: str, cursor: int, count: int) -> tuple[int, dict[bytes, bytes]]:
        """About `count` fields of a hash table, and the cursor of those that follow; 0 at the end.

        Raises RedisUnavailable.
        """
        following, fields = await self.call(lambda: self._client.hscan(name, cursor, count=count))
        return int(following), fields

    async def wait_for_entries(
        self, stream: str, after: bytes, wait_s: float, slots: asyncio.Semaphore | None = None
    ) -> StreamEntries:
        """Entries of a stream after this id. Waits up to `wait_s` for the first. Raises RedisUnavailable.

        slots: of a caller that must not wait for other readers.
        """
        block_ms = max(1, int(1000 * wait_s))
        streams = await self.call(
            lambda: self._blocking_client.xread({stream: after}, block=block_ms),
            wait_s + BACKGROUND_EXTRA_S,
            slots or self._blocking_reads,
        )
        return [entry for batches in (streams or {}).values() for batch in batches for entry in batch]

    async def call(
        self, start: Callable[[], Awaitable[T]], extra_s: float = 0.0, slots: asyncio.Semaphore | None = None
    ) -> T:
        """Starts a call to Redis and awaits it. extra_s: added to the store's timeout. Raises RedisUnavailable."""
        # Waiting for a free connection is not Redis' fault, so it does not count towards the timeout.
        async with slots or self._calls:
            if self._breaker.opened or self.closed:
                raise RedisUnavailable(f"{self._name}: the circuit is open")
            try:
                async with _timeout(self._timeout_s + extra_s):
                    reply = await start()
            except REDIS_ERRORS as error:
                if not self.closed:
                    self._count_failure(error)
                raise RedisUnavailable(f"{self._name}: {type(error).__name__}") from error
            finally:
                if self.closed:  # the store was closed meanwhile, perhaps before this call had its connection
                    await self._disconnect()
        # The breaker's own context manager would count a cancelled call as a success.
        self._breaker.reset()
        if self._open:
            self._open = False
            self._callbacks.on_circuit_change(False)
            log.warning("Redis answers again", extra={"store": self._name})
        return reply

    async def close(self) -> None:
        self.closed = True
        await self._disconnect()

    async def _disconnect(self) -> None:
        await self._client.aclose()
        await self._blocking_client.aclose()

    def _count_failure(self, error: Exception) -> None:
        self._callbacks.on_fault()
        with suppress(*REDIS_ERRORS), self._breaker:
            raise error
        if self._breaker.opened and not self._open:
            self._open = True
            self._callbacks.on_circuit_change(True)
        if time.monotonic() - self._logged_at > _LOG_INTERVAL_S:
            self._logged_at = time.monotonic()
            extra = {"store": self._name, "error": type(error).__name__, "circuit_open": self._open}
            log.warning("Redis calls fail; continuing without it until it answers", extra=extra)


@asynccontextmanager
async def _timeout(seconds: float) -> AsyncIterator[None]:
    """Like asyncio.timeout, but accepts a reply that arrived in time.

    A busy event loop checks its timers before it reads its sockets, so a plain timeout would blame Redis for the
    router's own delay.
    """
    loop = asyncio.get_running_loop()

    def expire(limit: asyncio.Timeout, grace_periods: int) -> None:
        if grace_periods:
            timer[0] = loop.call_later(_GRACE_S, expire, limit, grace_periods - 1)
        else:
            limit.reschedule(loop.time())

    async with asyncio.timeout(None) as limit:
        timer: list[asyncio.Handle] = [loop.call_later(seconds, expire, limit, _GRACE_PERIODS)]
        try:
            yield
        finally:
            timer[0].cancel()


class Script:
    """A Lua script of a store."""

    def __init__(self, store: RedisStore, text: str, script: Callable[..., Awaitable[Any]]) -> None:
        self._store = store
        self._text = text
        self._sha = sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._script = script

    async def __call__(self, keys: Sequence[str], *arguments: Any, extra_s: float = 0.0) -> Any:
        """The script's reply. extra_s: added to the store's timeout. Raises RedisUnavailable."""
        return await self._store.call(lambda: self._script(keys=keys, args=arguments), extra_s)

    async def run_all(self, calls: Sequence[tuple[Sequence[str], Sequence[object]]]) -> list[Any]:
        """Runs the script for each pair of keys and arguments, in one round trip. A reply may be an error of Redis.

        Raises RedisUnavailable.
        """
        replies = await self._run_all("EVALSHA", self._sha, calls)
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            again = await self._run_all("EVAL", self._text, [calls[index] for index in unknown])
            for index, reply in zip(unknown, again, strict=True):
                replies[index] = reply
        return replies

    async def _run_all(
        self, command: str, script: str, calls: Sequence[tuple[Sequence[str], Sequence[object]]]
    ) -> list[Any]:
        commands = [(command, script, len(keys), *keys, *arguments) for keys, arguments in calls]
        return await self._store.pipeline(commands)
