"""Single flight across routers: one router generates an answer, the others follow its tokens through Redis.

Each answer under way has a leader. A router that wants the same answer tells the leader so, in the leader's inbox; then
the leader appends all tokens so far, and the further ones in batches, to a stream that the others read from its start.
Without followers no token goes to Redis, unless the client has named its request by a key: then a retry must be able to
continue it after its router's death, and nobody could ask for the tokens in time.

A leader that dies no longer shows that it lives (deployments.cache.presence). A follower takes the flight over: it has
read all tokens so far, and continues from them. Appending needs the lead, so there is one leader at a time; each batch
says at which token it starts, so a gap would be noticed. A router that cannot continue with Redis continues alone. What
a leader generated that left without followers stays for a while: the next router to ask the same question continues
from it.

Followers tell the leader their queue class too, so that it can raise the priority of what still waits for the engines.
An error of the question itself ends the flight for all; after any other error the leader leaves and a follower takes
over.
"""

import asyncio
import secrets
from collections import Counter
from contextlib import suppress

from deployments.cache.flight_lease import FlightLease, Leases
from deployments.cache.flight_store import ID_BYTES, FlightStore, flight_keys
from deployments.cache.presence import Presence, Wish
from deployments.common.redis import RedisStore, RedisUnavailable
from deployments.routing.queue_class import QueueClass


class SingleFlight:
    """One router's access to the flights of all routers."""

    def __init__(self, store: RedisStore) -> None:
        router = secrets.token_hex(ID_BYTES)
        self._store = FlightStore(store, router)
        self._leases: Leases = {}
        self._acquiring: Counter[str] = Counter()
        self._presence = Presence(store, router, self._receive, lambda: bool(self._leases))
        self._tasks: set[asyncio.Task[None]] = set()

    async def acquire(
        self, answer_key: str, queue_class: QueueClass, *, resumable: bool = False
    ) -> "bytes | FlightLease":
        """The stored answer if there is one, else a lease of its flight. Raises RedisUnavailable.

        resumable: a retry must find the tokens after this router's death.
        """
        keys, store = flight_keys(answer_key), self._store
        await self._presence.show()
        self._acquiring[answer_key] += 1
        try:
            acquired = await store.acquire(keys, secrets.token_hex(ID_BYTES))
            if acquired.stored is not None:
                return acquired.stored
            if not acquired.leads and not await self._presence.lives(acquired.leader):
                acquired = await store.take_over(keys, acquired.flight, acquired.leader)
            lease = FlightLease(store, self._presence, self._leases, keys, acquired, queue_class, resumable=resumable)
            lease.start(acquired)
        finally:
            self._acquiring -= Counter([answer_key])
        return lease

    def _receive(self, wish: Wish) -> None:
        """Another router wants, or no longer wants, the tokens of a flight."""
        leases = self._leases.get(wish.flight, ())
        for lease in leases:
            lease.receive(wish)
        if not any(lease.holds_lead for lease in leases) and wish.answer_key not in self._acquiring:
            # This router has lost the flight: a client left while Redis gave it the lead, or by a fault of its own.
            # Nobody else can notice while it lives, and this router may follow the flight itself.
            task = asyncio.create_task(self._leave(wish))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _leave(self, wish: Wish) -> None:
        with suppress(RedisUnavailable):
            await self._store.leave(flight_keys(wish.answer_key), wish.flight)
