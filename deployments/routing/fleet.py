"""What a router knows of each replica of a model, and of all of them together."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deployments.common.messages import (
    TYPICAL_COMPLETION_TOKENS,
    EngineRequest,
    EngineState,
    PendingWork,
    ReplicaStats,
)
from deployments.common.prefix import BLOCK_TOKENS
from deployments.routing.owner_ring import OwnerRing
from deployments.routing.prefix_holders import PackedKeys, PrefixHolders, PrefixMatch

UNRESPONSIVE_S = 2.0
"""A replica that has not answered a probe within this time is tried last."""


@dataclass(slots=True)
class Assignment:
    """A request that a replica was given: the tokens it still has to compute, as far as this router knows.

    keys: of the blocks of its prompt. held: tokens of it that the replica had cached before.
    """

    prompt_tokens: int
    max_completion_tokens: int
    keys: PackedKeys
    held: int

    @property
    def completion_tokens(self) -> int:
        """The expected rest. The tokens so far do not predict the remaining length."""
        return max(1, min(self.max_completion_tokens, TYPICAL_COMPLETION_TOKENS))


class ReplicaState:
    """What this router knows of one replica. Requests are named by their attempt ids."""

    def __init__(self, prefixes: PrefixHolders, router_id: str, clock: Callable[[], float]) -> None:
        """prefixes: of all replicas. router_id: this router's, whose own requests are counted here and not by the
        replica's report."""
        self.number = prefixes.join()
        """The replica's number in `prefixes`."""
        self._prefixes = prefixes
        self._router_id = router_id
        self._clock = clock
        self._stats = ReplicaStats()
        self._stats_changed_at = 0.0
        self._assignments: dict[int, Assignment] = {}
        self._prompt_tokens = self._completion_tokens = 0
        """Of all assignments."""
        self._probed_at: float | None = None

    def update(self, stats: ReplicaStats) -> None:
        """Takes the replica's report. May be called with unchanged stats, when another replica's changed."""
        if stats != self._stats:
            self._stats_changed_at = self._clock()
            self._prefixes.report(self.number, stats.kv_tokens // BLOCK_TOKENS, stats.evicted_before)
        self._stats = stats

    @property
    def engine(self) -> EngineState:
        """What people see of the replica."""
        return self._stats.engine

    def probe_sent(self) -> None:
        """The replica is being asked whether it takes a request."""
        if self._probed_at is None:
            self._probed_at = self._clock()

    def probe_acked(self) -> None:
        """The replica has answered whether it takes a request."""
        self._probed_at = None

    @property
    def unresponsive(self) -> bool:
        """Whether a probe has been unanswered for too long: its node may be gone."""
        return self._probed_at is not None and self._clock() - self._probed_at > UNRESPONSIVE_S

    @property
    def attempts(self) -> list[int]:
        """Attempts assigned to it."""
        return list(self._assignments)

    def assign(self, request: EngineRequest, keys: PackedKeys) -> None:
        """Counts a request as this replica's work. keys: of its whole prompt."""
        held = self.cached_tokens(self._prefixes.match(keys))
        uncached = len(request.prompt_ids) - held
        self._remove(request.attempt_id)
        self._assignments[request.attempt_id] = Assignment(uncached, request.max_new_tokens, keys, held)
        self._count(self._assignments[request.attempt_id])
        self._prefixes.add(keys, self.number)

    def record_tokens(self, attempt_id: int, tokens: int) -> None:
        """The attempt delivered new tokens: so its prompt has been computed, and its completion has fewer left."""
        if (assignment := self._assignments.get(attempt_id)) is not None:
            self._count(assignment, -1)
            assignment.prompt_tokens = 0
            assignment.max_completion_tokens -= tokens
            self._count(assignment)

    def finish(self, attempt_id: int) -> None:
        """The attempt is over or has moved to another replica."""
        if (assignment := self._remove(attempt_id)) is not None:
            # Until now its blocks were in use, and they are evicted by the time of their last use.
            self._prefixes.add(assignment.keys, self.number)

    def refused(self, attempt_id: int) -> None:
        """The replica had no place for the request, and has computed nothing of it."""
        if (assignment := self._remove(attempt_id)) is not None:
            self._prefixes.forget(assignment.keys, self.number, assignment.held // BLOCK_TOKENS)

    def _remove(self, attempt_id: int) -> Assignment | None:
        if (assignment := self._assignments.pop(attempt_id, None)) is not None:
            self._count(assignment, -1)
        return assignment

    def _count(self, assignment: Assignment, sign: int = 1) -> None:
        self._prompt_tokens += sign * assignment.prompt_tokens
        self._completion_tokens += sign * assignment.completion_tokens

    def add_cached(self, keys: PackedKeys) -> None:
        """Another router had these blocks computed."""
        self._prefixes.add(keys, self.number)

    def cached_tokens(self, prefix: PrefixMatch) -> int:
        """Tokens of a prompt that the replica need not compute."""
        return prefix.tokens(self.number)

    def leave(self) -> None:
        """The replica is gone."""
        self._prefixes.leave(self.number)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens computed a second; 0 while unknown."""
        return self._stats.prefill_tokens_per_s

    @property
    def full(self) -> bool:
        """Whether a further request would wait until another has ended, as far as this router knows."""
        places = self._stats.max_num_seqs
        return places > 0 and len(self._assignments) + sum(work.streams for work in self._others()) >= places

    def _others(self) -> Iterator[PendingWork]:
        """What the replica has of other routers, by its report."""
        return (work for router_id, work in self._stats.pending.items() if router_id != self._router_id)

    def cost(self, request: EngineRequest, prefix: PrefixMatch) -> int:
        """The waiting time that the request adds to all requests here, its own included, in prompt tokens.

        prefix: what replicas hold of its prompt.
        """
        uncached = len(request.prompt_ids) - self.cached_tokens(prefix)
        completion = min(request.max_new_tokens, TYPICAL_COMPLETION_TOKENS)
        # Of this router's own requests the state is exact, of other routers' it is as old as the replica's report.
        queued, decoded_beside = self._prompt_tokens, self._completion_tokens
        if completion < TYPICAL_COMPLETION_TOKENS:
            decoded_beside = sum(min(each.completion_tokens, completion) for each in self._assignments.values())
        streams, reported = len(self._assignments), 0
        for work in self._others():
            reported += work.prompt_tokens
            decoded_beside += min(work.completion_tokens, work.streams * completion)
            streams += work.streams
        computed_since = round(self.prefill_tokens_per_s * (self._clock() - self._stats_changed_at))
        queued += max(0, reported - computed_since)
        # Where all places are taken, it waits until one is free: in the time of one completion all of them become free.
        places = self._stats.max_num_seqs
        queued += max(0, streams + 1 - places) * completion if places else 0
        # A stream lengthens another one's step by about as much as a prompt token (0.9 to 2 times, on one core).
        return queued + uncached * (1 + streams) + 2 * decoded_beside


class Fleet(Mapping[str, ReplicaState]):
    """The replicas by name, and what finds a few of them without looking at all."""

    def __init__(
        self,
        router_id: str = "",
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        """router_id: this router's. unix_clock: the time that replicas on other machines report too."""
        self._router_id = router_id
        self._clock = clock
        self.prefixes = PrefixHolders(unix_clock)
        self.ring = OwnerRing()
        self.names: list[str] = []
        """Of all replicas, to draw from."""
        self._states: dict[str, ReplicaState] = {}
        self._names_by_number: dict[int, str] = {}

    def __getitem__(self, name: str) -> ReplicaState:
        return self._states[name]

    def __contains__(self, name: object) -> bool:
        return name in self._states

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def join(self, name: str) -> ReplicaState:
        """Adds a replica of which nothing is known."""
        state = self._states[name] = ReplicaState(self.prefixes, self._router_id, self._clock)
        self._names_by_number[state.number] = name
        self.names.append(name)
        self.ring.add(name)
        return state

    def leave(self, names: Sequence[str]) -> None:
        """Forgets replicas."""
        for name in names:
            state = self._states.pop(name)
            del self._names_by_number[state.number]
            state.leave()
            self.ring.remove(name)
        self.names = list(self._states)

    def name_of(self, number: int) -> str:
        """The replica that has this number in `prefixes`; empty if it has left."""
        return self._names_by_number.get(number, "")
