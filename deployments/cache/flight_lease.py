"""A router's part in one flight (deployments.cache.single_flight)."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Literal

from deployments.cache.flight_store import LEAD_MS, Acquisition, Diverged, Entry, FlightStore, Record
from deployments.cache.followers import Followers
from deployments.cache.presence import RENEW_S, Presence, Wish
from deployments.common.errors import ApiError
from deployments.common.messages import TokenBatch
from deployments.common.redis import BACKGROUND_EXTRA_S, RedisUnavailable
from deployments.common.tasks import to_the_end
from deployments.routing.queue_class import QueueClass

log = logging.getLogger("dray.flights")

_FOLLOWED_S, _RESUMABLE_S = 0.05, 0.25
"""Between two batches: with followers, and for a retry only. All flights of a router publish at the same moments."""
_RENEW_LEAD_S = LEAD_MS / 3000

Role = Literal["lead", "follow", "alone"]
Leases = dict[str, list["FlightLease"]]
"""A router's leases that have neither ended nor gone on alone, by flight."""


class FlightLease:
    """A router's part in one flight.

    `follow` yields what another router generated. The owner generates what is missing, passes it to `record`, and ends
    the lease with `complete`, `fail` or `release`.
    """

    def __init__(
        self,
        store: FlightStore,
        presence: Presence,
        leases: Leases,
        keys: list[str],
        acquired: Acquisition,
        queue_class: QueueClass,
        *,
        resumable: bool,
    ) -> None:
        """leases: of this router. resumable: a retry must find the tokens after this router's death."""
        self.name = acquired.flight
        self.role: Role = "follow"
        self.joined = not acquired.leads
        """Whether another router led when this one acquired the lease."""
        self.holds_lead = acquired.leads
        """Whether Redis has this router as the leader because of this lease."""
        self.on_lift: Callable[[QueueClass], object] = _ignore
        """Called with the queue class of each follower, time and again while this router leads."""
        self._store = store
        self._presence = presence
        self._leases = leases
        self._keys = keys
        self._leader = acquired.leader
        self._queue_class = queue_class
        self._told_at, self._told = 0.0, ("", queue_class)
        self._last_id = b"0"
        self._batches: defaultdict[tuple[int, int], list[TokenBatch]] = defaultdict(list)
        self._sizes: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._resumable = resumable
        self._pending: list[Record] = []
        self._published = False
        """Whether the stream has tokens of this flight."""
        self._followed = Followers()
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

    def start(self, acquired: Acquisition) -> None:
        """Starts to lead or to follow, as acquired."""
        self._leases.setdefault(self.name, []).append(self)
        self._presence.keep()
        if acquired.leads and not acquired.resumed:
            self._become("lead")
        self._task = asyncio.create_task(self._run(leads=acquired.leads))

    def lift(self, queue_class: QueueClass) -> None:
        """Passes a queue class on to the leader, if it is more urgent than the one that the leader knows."""
        if queue_class.urgency < self._queue_class.urgency:
            self._queue_class = queue_class

    def receive(self, wish: Wish) -> None:
        """Takes a wish from another router, to which this one leads, or is about to."""
        self._followed.receive(wish)

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
        """Takes tokens that this router generated. They are published with the next batch, if anybody wants them."""
        at = self._sizes[choice, stage]
        self._sizes[choice, stage] += len(tokens.ids)
        if self.role == "lead":
            self._pending.append(Record(choice, stage, at, tokens))

    async def has_followers(self) -> bool:
        """Whether this router leads and another one follows."""
        if self.role != "lead" or not self._followed:
            return False
        try:
            await self._publish()
        except RedisUnavailable:
            return False
        return self.role == "lead"

    async def complete(self, answer: bytes = b"", ttl_s: int = 1) -> None:
        """Ends the flight. answer: to be stored for `ttl_s` seconds in the same step; empty: nothing is stored."""
        await to_the_end(self._end(answer, ttl_s))

    async def fail(self, error: ApiError) -> None:
        """Ends the flight with an error of the question itself, which every follower raises."""
        await to_the_end(self._end(error=error))

    async def release(self) -> None:
        """Leaves the flight to the others. Does nothing once the flight has ended."""
        if not self._ended:
            await to_the_end(self._leave())

    async def _end(self, answer: bytes = b"", ttl_s: int = 1, error: ApiError | None = None) -> None:
        await self._stop()
        if self.role == "lead" or (self.role == "alone" and answer):
            unread = not self._published
            with suppress(RedisUnavailable):  # all expires by itself
                await self._store.end(
                    self._keys, self.name, self._pending, answer=answer, ttl_s=ttl_s, error=error, only_if_wanted=unread
                )
        self._forget()

    async def _leave(self) -> None:
        await self._stop()
        with suppress(RedisUnavailable):
            if self.role == "lead":
                await self._store.leave(self._keys, self.name, self._pending)
            elif self.role == "follow":
                await self._tell(None)
        self._forget()

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
        except (RedisUnavailable, Diverged):
            pass
        except Exception:
            # Whatever it is, the callers of `follow` must not wait for ever.
            log.exception("single flight failed; this router continues alone")
        finally:
            if not self._ended:
                self._become("alone")

    async def _follow(self) -> bool:
        """Reads until the flight ends or its leader is gone. Returns whether this router leads now."""
        while True:
            await self._ask_leader()
            if await self._read(RENEW_S):
                if self._complete:
                    return False
                continue
            acquired = await self._store.take_over(self._keys, self.name)
            if not acquired.leads and not await self._presence.lives(acquired.leader, BACKGROUND_EXTRA_S):
                acquired = await self._store.take_over(self._keys, self.name, acquired.leader)
            if acquired.flight != self.name:
                raise Diverged
            if acquired.leads:
                self.holds_lead = True
                return await self._catch_up()
            self._leader = acquired.leader

    async def _ask_leader(self) -> None:
        """Tells the leader that its tokens are wanted, often enough for it to know."""
        now, wanted = asyncio.get_running_loop().time(), (self._leader, self._queue_class)
        if wanted != self._told or now - self._told_at >= RENEW_S:
            self._told_at, self._told = now, wanted
            await self._tell(self._queue_class)

    async def _tell(self, queue_class: QueueClass | None) -> None:
        wish = Wish(self.name, self._keys[0], self._store.router, queue_class)
        await self._presence.tell(self._leader, wish)

    async def _catch_up(self) -> bool:
        """Reads what was published before this router took the lead; nobody else can publish now."""
        while await self._read(0.0):
            pass
        self._published = self._last_id != b"0"
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
        """Publishes tokens while they are wanted, until cancelled or until another router has the lead."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while self.role == "lead":
            followed = bool(self._followed)
            wanted = followed or self._resumable
            if (wanted and self._pending) or loop.time() - renewed > (RENEW_S if followed else _RENEW_LEAD_S):
                with suppress(RedisUnavailable):  # unpublished tokens go out with the next batch
                    await self._publish()
                    renewed = loop.time()
            for queue_class in self._followed.queue_classes:
                self.on_lift(queue_class)
            interval_s = _FOLLOWED_S if followed else _RESUMABLE_S if self._resumable else _RENEW_LEAD_S
            await self._followed.wait(interval_s - loop.time() % interval_s)

    async def _publish(self) -> None:
        # One at a time: two would publish the same tokens.
        async with self._publishing:
            count = len(self._pending) if self._followed or self._resumable else 0
            if not await self._store.publish(self._keys, self.name, self._pending[:count]):
                log.info("another router leads this flight now; continuing alone")
                self._become("alone")
                return
            del self._pending[:count]
            self._published = self._published or count > 0

    def _become(self, role: Role) -> None:
        self.role = role
        if role == "alone":
            self._forget()
        self._wake()

    def _forget(self) -> None:
        if self in (leases := self._leases.get(self.name, [])):
            leases.remove(self)
            if not leases:
                del self._leases[self.name]

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _ignore(queue_class: QueueClass) -> None:
    pass
