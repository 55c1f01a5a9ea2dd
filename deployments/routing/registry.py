"""The engine replicas that this router process may send requests to, and what it has sent them."""

import itertools
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from deployments.common.messages import EngineRequest, ReplicaStats
from deployments.common.prefix import block_keys
from deployments.routing.fleet import UNRESPONSIVE_S, Fleet, ReplicaState
from deployments.routing.policy import rank_replicas
from deployments.routing.prefix_holders import PackedKeys, pack

_PENDING_S = UNRESPONSIVE_S
"""A request that no replica has accepted within this time does not count as work of the replica chosen for it."""


class EngineReplicas:
    """The replicas of one engine application, and the attempts that this router has running on them.

    A replica's entries end when it leaves. An attempt's end with the attempt, whatever Serve reports of its request:
    so the tables never outgrow the replicas and the running attempts.
    """

    def __init__(self, router_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.router_id = router_id
        self._clock = clock
        self.states = Fleet(router_id, clock)
        """The replicas by name."""
        self._attempts: dict[int, ReplicaState | None] = {}
        """Every running attempt, with the replica it is assigned to."""
        self._pending: dict[int, float] = {}
        """Attempts that are assigned to a replica that has not accepted them yet, with the time until which that
        counts; the oldest first."""
        self._attempt_ids = itertools.count(1)
        self._subscribers: list[Callable[[int], None]] = []
        self._known = False

    @property
    def gone(self) -> bool:
        """Whether there is known to be none: not before Serve has said which there are."""
        return self._known and not self.count

    @property
    def count(self) -> int:
        """Replicas that could take a request now."""
        return len(self.states)

    @property
    def entries(self) -> int:
        """Entries that are kept of replicas and attempts, in all tables: tests watch their number."""
        assigned = sum(len(replica.attempts) for replica in self.states.values())
        return len(self.states) + len(self._attempts) + len(self._pending) + assigned

    def subscribe(self, on_count: Callable[[int], None]) -> None:
        """Has `on_count` called with the number of replicas whenever it changes."""
        self._subscribers.append(on_count)

    def update(self, stats: Mapping[str, ReplicaStats]) -> None:
        """Takes the replicas that there are now, by name, with what each last reported. All others have left."""
        before, self._known = self.count, True
        gone = [name for name in self.states if name not in stats]
        for name in gone:
            for attempt_id in self.states[name].attempts:
                self._release(attempt_id)
        self.states.leave(gone)
        for name, reported in stats.items():
            (self.states.get(name) or self.states.join(name)).update(reported)
        if self.count != before:
            for on_count in self._subscribers:
                on_count(self.count)

    @contextmanager
    def attempt(self) -> Iterator[int]:
        """Runs an attempt at a request; gives the id by which everything else here names it."""
        attempt_id = next(self._attempt_ids)
        self._attempts[attempt_id] = None
        try:
            yield attempt_id
        finally:
            self._release(attempt_id)
            del self._attempts[attempt_id]

    def choose(self, request: EngineRequest, candidates: Collection[str]) -> list[str]:
        """Names of the candidates to try, the best first. The best counts as given the request at once, so that the
        next choice knows of it. A request may be chosen for again."""
        self._release(request.attempt_id)
        self._expire_pending()
        keys = pack(block_keys(request.prompt_ids))
        names = rank_replicas(request, self.states, keys, candidates)
        if names:
            first = self.states[names[0]]
            first.probe_sent()
            if self._assign(request, keys, first):
                self._pending[request.attempt_id] = self._clock() + _PENDING_S
        return names

    def accepted(self, request: EngineRequest, name: str) -> None:
        """The replica has taken the request."""
        if (replica := self.states.get(name)) is None:
            return
        if self._attempts.get(request.attempt_id) is not replica:
            self._assign(request, pack(block_keys(request.prompt_ids)), replica)
        self._pending.pop(request.attempt_id, None)

    def refused(self, attempt_id: int) -> None:
        """The replica had no place for the attempt's request."""
        if (replica := self._attempts.get(attempt_id)) is not None:
            replica.refused(attempt_id)

    def probe_acked(self, name: str) -> None:
        """The replica has answered whether it takes a request."""
        if (replica := self.states.get(name)) is not None:
            replica.probe_acked()

    def record_tokens(self, attempt_id: int, tokens: int) -> None:
        """The attempt has delivered new tokens."""
        if (replica := self._attempts.get(attempt_id)) is not None:
            replica.record_tokens(attempt_id, tokens)

    def _assign(self, request: EngineRequest, keys: PackedKeys, replica: ReplicaState) -> bool:
        """Counts the request as the replica's work; not one that has ended, which Serve may still be routing."""
        if request.attempt_id not in self._attempts:
            return False
        self._release(request.attempt_id)
        replica.assign(request, keys)
        self._attempts[request.attempt_id] = replica
        return True

    def _release(self, attempt_id: int) -> None:
        """Takes the attempt from the replica that it is assigned to."""
        self._pending.pop(attempt_id, None)
        if (replica := self._attempts.get(attempt_id)) is not None:
            replica.finish(attempt_id)
            self._attempts[attempt_id] = None

    def _expire_pending(self) -> None:
        now = self._clock()
        while self._pending and (oldest := next(iter(self._pending.items())))[1] < now:
            self._release(oldest[0])


class ReplicaRegistry:
    """The engine replicas of all applications, for one router process."""

    def __init__(self) -> None:
        self.router_id = secrets.token_hex(4)
        """Names this process in what it asks of replicas, and in what they report of pending work."""
        self._applications: dict[str, EngineReplicas] = {}

    def replicas_of(self, application: str) -> EngineReplicas:
        """The replicas of this application; the same object each time."""
        return self._applications.setdefault(application, EngineReplicas(self.router_id))


@cache
def registry() -> ReplicaRegistry:
    """The one registry of this process.

    It is found by import because nothing can be passed to the request router: Serve creates that object itself, from a
    class that it sends by value (ray 2.60). The router and its dispatchers are handed what they need of it. All of
    them run on one event loop (RAY_SERVE_THROUGHPUT_OPTIMIZED).
    """
    return ReplicaRegistry()
