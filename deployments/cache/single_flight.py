"""Single flight across routers: one router generates an answer, the others follow its tokens through Redis.

Each answer under way has a lock and a stream of tokens. The router that holds the lock leads: it renews the lock while
it generates, and appends its tokens to the stream in batches. The others read the stream from its start. When the
leader dies, its lock expires and a follower takes it: the follower has read all tokens so far, and continues from them.
Appending needs the lock, so there is one leader at a time; each batch says at which token it starts, so a gap would be
noticed. A router that cannot continue with Redis continues alone. The stream of a leader that left without followers
stays for a while: the next router to ask the same question continues from it.

Followers tell the leader their queue class, so that it can raise the priority of what still waits for the engines. An
error of the question itself ends the flight for all; after any other error the leader leaves and a follower takes over.
"""

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Literal

import msgspec

from deployments.cache.flight_store import Diverged, Entry, FlightStore, Follower, Record, flight_keys
from deployments.common.errors import ApiError
from deployments.common.messages import TokenBatch
from deployments.common.redis import RedisStore, RedisUnavailable
from deployments.routing.queue_class import QueueClass

log = logging.getLogger("dray.flights")

_RENEW_S = 0.3
_FOLLOWED_S, _UNFOLLOWED_S = 0.05, 0.25
"""Between two batches: with followers, and without."""
_NAME_BYTES = 8

Role = Literal["lead", "follow", "alone"]


class SingleFlight:
    """One router's access to the flights of all routers."""

    def __init__(self, store: RedisStore) -> None:
        self._store = FlightStore(store, secrets.token_hex(_NAME_BYTES))

    async def acquire(self, answer_key: str, queue_class: QueueClass) -> "bytes | FlightLease":
        """The stored answer if there is one, else a lease of its flight. Raises RedisUnavailable."""
        keys = flight_keys(answer_key)
        acquired = await self._store.acquire(keys, secrets.token_hex(_NAME_BYTES))
        if acquired.stored is not None:
            return acquired.stored
        lease = FlightLease(self._store, keys, acquired.flight, queue_class)
        lease.start(leads=acquired.leads, resumed=acquired.resumed)
        return lease


class FlightLease:
    """A router's part in one flight.

    `follow` yields what another router generated. The owner generates what is missing, passes it to `record`, and ends
    the lease with `complete`, `fail` or `release`.
    """

    def __init__(self, store: FlightStore, keys: list[str], name: str, queue_class: QueueClass) -> None:
        self.name = name
        self.role: Role = "follow"
        self.joined = False
        """Whether another router led when this one acquired the lease."""
        self.on_lift: Callable[[QueueClass], object] = _ignore
        """Called with the queue class of each follower, time and again while this router leads."""
        self._store = store
        self._keys = keys
        self._follower = Follower(store.router, queue_class)
        self._last_id = b"0"
        self._batches: defaultdict[tuple[int, int], list[TokenBatch]] = defaultdict(list)
        self._sizes: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._pending: list[Record] = []
        self._followed = False
        self._complete = False
        self._failure: ApiError | None = None
        self._ended = False
        self._publishing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def seed(self) -> int:
        """Every router samples this flight with the same seed, so one can continue where another stopped."""
        return int(self.name, 16) >> 1

    def start(self, *, leads: bool, resumed: bool) -> None:
        """Starts to lead or to follow. resumed: the stream has tokens of an earlier leader."""
        self.joined = not leads
        if leads and not resumed:
            self._become("lead")
        self._task = asyncio.create_task(self._run(leads=leads))

    def lift(self, queue_class: QueueClass) -> None:
        """Passes a queue class on to the leader, if it is more urgent than the one that the leader knows."""
        if queue_class.urgency < self._follower.queue_class.urgency:
            self._follower = msgspec.structs.replace(self._follower, queue_class=queue_class)

    async def follow(self, choice: int, stage: int) -> AsyncGenerator[TokenBatch, None]:
        """Yields a leader's tokens as they arrive; ends without a finish reason if this router must generate the rest.

        Raises ApiError if the leader failed on the question itself.
        """
        batches = self._batches[choice, stage]
        index = 0
        while True:
            while index < len(batches):
                yield batches[index]
                index += 1
            if batches and batches[-1].finish_reason:
                return
            if self._failure is not None:
                raise self._failure
            if self.role != "follow":
                return
            await self._changed.wait()

    def record(self, choice: int, stage: int, tokens: TokenBatch) -> None:
        """Publishes tokens that this router generated, with the next batch."""
        at = self._sizes[choice, stage]
        self._sizes[choice, stage] += len(tokens.ids)
        if self.role == "lead":
            self._pending.append(Record(choice, stage, at, tokens))

    async def has_followers(self) -> bool:
        """Whether this router leads and another one follows."""
        if self.role != "lead":
            return False
        try:
            await self._publish()
        except RedisUnavailable:
            return False
        return self._followed

    async def complete(self, answer: bytes = b"", ttl_s: int = 1) -> None:
        """Ends the flight. answer: to be stored for `ttl_s` seconds in the same step; empty: nothing is stored."""
        await self._stop()
        if self.role == "lead" or (self.role == "alone" and answer):
            with suppress(RedisUnavailable):  # lock and stream expire by themselves
                await self._store.end(self._keys, self.name, self._pending, answer=answer, ttl_s=max(1, ttl_s))

    async def fail(self, error: ApiError) -> None:
        """Ends the flight with an error of the question itself, which every follower raises."""
        await self._stop()
        if self.role == "lead":
            with suppress(RedisUnavailable):
                await self._store.end(self._keys, self.name, self._pending, error=error)

    async def release(self) -> None:
        """Leaves the flight to the others. Does nothing once the flight has ended."""
        if not self._ended:
            await self._stop()
            with suppress(RedisUnavailable):
                await self._store.leave(self._keys, self.name, self._pending, self._follower)

    async def _stop(self) -> None:
        self._ended = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self, *, leads: bool) -> None:
        try:
            if not leads:
                leads = await self._follow()
            elif self.role != "lead":
                leads = await self._catch_up()
            if leads:
                self._become("lead")
                await self._lead()
            else:
                self._become("alone")
        except (RedisUnavailable, Diverged):
            self._become("alone")
        except Exception:
            # Whatever it is, the callers of `follow` must not wait for ever.
            self._become("alone")
            log.exception("single flight failed; this router continues alone")

    async def _follow(self) -> bool:
        """Reads until the flight ends or its leader is gone. Returns whether this router leads now."""
        while True:
            await self._store.follow(self._keys, self._follower)
            if await self._read(_RENEW_S):
                if self._complete:
                    return False
                continue
            acquired = await self._store.take_over(self._keys, self.name)
            if acquired.flight != self.name:
                raise Diverged
            if acquired.leads:
                return await self._catch_up()

    async def _catch_up(self) -> bool:
        """Reads what was published before this router took the lock; nobody else can publish now."""
        while await self._read(0.0):
            pass
        return not self._complete

    async def _read(self, wait_s: float) -> bool:
        """Reads new entries of the stream; returns whether there were any. Raises Diverged."""
        entries = await self._store.read(self._keys, self.name, self._last_id, wait_s)
        for entry in entries:
            self._last_id = entry.id
            self._take(entry)
        if entries:
            self._wake()
        return bool(entries)

    def _take(self, entry: Entry) -> None:
        for record in entry.records:
            key = record.choice, record.stage
            if record.at + len(record.tokens.ids) <= self._sizes[key] and record.tokens.ids:
                continue  # published twice: the leader got no reply the first time
            if record.at != self._sizes[key]:
                raise Diverged
            self._sizes[key] += len(record.tokens.ids)
            self._batches[key].append(record.tokens)
        self._failure = self._failure or entry.error
        self._complete = self._complete or entry.ended

    async def _lead(self) -> None:
        """Renews the lock and publishes tokens, until cancelled or until another router has the lock."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while self.role == "lead":
            await asyncio.sleep(_FOLLOWED_S if self._followed else _UNFOLLOWED_S)
            if self._pending or loop.time() - renewed > _RENEW_S:
                with suppress(RedisUnavailable):  # unpublished tokens go out with the next batch
                    await self._publish()
                    renewed = loop.time()

    async def _publish(self) -> None:
        # One at a time: two would publish the same tokens.
        async with self._publishing:
            count = len(self._pending)
            followers = await self._store.publish(self._keys, self.name, self._pending)
            if followers is None:
                log.info("another router leads this flight now; continuing alone")
                self._followed = False
                self._become("alone")
                return
            del self._pending[:count]
            self._followed = bool(followers)
            for follower in followers:
                self.on_lift(follower.queue_class)

    def _become(self, role: Role) -> None:
        self.role = role
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _ignore(queue_class: QueueClass) -> None:
    pass
