"""Picks the replica where the request adds the least total waiting time, given what it has cached and queued.

Waiting time is counted in prompt tokens and divided by the replica's speed. A request waits for the prompts before it,
and for what of its own prompt is not cached; while that is computed, every stream on the replica waits as well; and
streams that decode beside each other make each other's steps longer. So a conversation, or requests with one system
prompt, return to where their KV cache is, until so many are served there that computing the prompt elsewhere costs
less. A prompt that no replica is known to hold goes to the replica that rendezvous hashing over its first block names:
all routers agree on it without asking each other.

What a replica has cached is known from the prompts that this router sent it, and from what other routers recorded
(deployments.routing.prefix_index).

Of many replicas only a few are compared: the best by its cache, the one by hashing, and two at random. So routers that
learn the same a second late do not all run to the same replica (Mitzenmacher, The power of two choices, 2001).
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from deployments.common.messages import TYPICAL_COMPLETION_TOKENS, EngineRequest, ReplicaStats
from deployments.common.prefix import BLOCK_TOKENS, PrefixMirror, block_keys

UNRESPONSIVE_S = 2.0
"""A replica that has not answered a probe within this time is tried last."""
_RANDOM_CANDIDATES = 2
_KV_TOKENS = 65_536
"""Tokens that a replica's cache is assumed to hold, until it has reported."""
_EQUAL_SPEED = 0.8
"""Share of the fastest replica's speed from which a replica counts as equally fast: measurements of equal nodes differ
by as much. Otherwise routers that read the speeds at different moments would send one prompt to different replicas."""


@dataclass(slots=True)
class Assignment:
    """A request that a replica was given: the tokens it still has to compute, as far as this router knows."""

    prompt_tokens: int
    max_completion_tokens: int

    @property
    def completion_tokens(self) -> int:
        """The expected rest. The tokens so far do not predict the remaining length."""
        return max(1, min(self.max_completion_tokens, TYPICAL_COMPLETION_TOKENS))


class ReplicaState:
    """What this router knows of one replica. Requests are named by their attempt ids."""

    def __init__(self, router_id: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        """router_id: this router's, whose own requests are counted here and not by the replica's report."""
        self._router_id = router_id
        self._clock = clock
        self._stats = ReplicaStats()
        self._stats_changed_at = 0.0
        self._cached = PrefixMirror(_KV_TOKENS // BLOCK_TOKENS)
        self._assignments: dict[int, Assignment] = {}
        self._probed_at: float | None = None

    def update(self, stats: ReplicaStats) -> None:
        """Takes the replica's report. May be called with unchanged stats, when another replica's changed."""
        if stats != self._stats:
            self._stats_changed_at = self._clock()
        if stats.kv_tokens not in (0, self._stats.kv_tokens):
            self._cached.resize(stats.kv_tokens // BLOCK_TOKENS)
        self._stats = stats

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

    def assign(self, request: EngineRequest, keys: Sequence[bytes]) -> None:
        """Counts a request as this replica's work. keys: block_keys of its whole prompt."""
        uncached = len(request.prompt_ids) - self.cached_tokens(keys)
        self._assignments[request.attempt_id] = Assignment(uncached, request.max_new_tokens)
        self._cached.add(keys)

    def record_tokens(self, attempt_id: int, tokens: int) -> None:
        """The attempt delivered new tokens: so its prompt has been computed, and its completion has fewer left."""
        if (assignment := self._assignments.get(attempt_id)) is not None:
            assignment.prompt_tokens = 0
            assignment.max_completion_tokens -= tokens

    def finish(self, attempt_id: int) -> None:
        """The attempt is over or has moved to another replica."""
        self._assignments.pop(attempt_id, None)

    def add_cached(self, keys: Sequence[bytes]) -> None:
        """Another router had these blocks computed."""
        self._cached.add(keys)

    def cached_tokens(self, keys: Sequence[bytes]) -> int:
        """Tokens of a prompt that the replica need not compute."""
        return self._cached.match(keys)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens computed a second; 0 while unknown."""
        return self._stats.prefill_tokens_per_s

    def cost(self, request: EngineRequest, keys: Sequence[bytes]) -> int:
        """The waiting time that the request adds to all requests here, its own included, in prompt tokens.

        keys: of the blocks of its prompt that may be cached.
        """
        uncached = len(request.prompt_ids) - self.cached_tokens(keys)
        completion = min(request.max_new_tokens, TYPICAL_COMPLETION_TOKENS)
        # Of this router's own requests the state is exact, of other routers' it is as old as the replica's report.
        assigned = self._assignments.values()
        queued = sum(assignment.prompt_tokens for assignment in assigned)
        decoded_beside = sum(min(assignment.completion_tokens, completion) for assignment in assigned)
        streams, reported = len(assigned), 0
        for router_id, work in self._stats.pending.items():
            if router_id != self._router_id:
                reported += work.prompt_tokens
                decoded_beside += min(work.completion_tokens, work.streams * completion)
                streams += work.streams
        computed_since = round(self.prefill_tokens_per_s * (self._clock() - self._stats_changed_at))
        queued += max(0, reported - computed_since)
        # A stream lengthens another one's step by about as much as a prompt token (0.9 to 2 times, on one core).
        return queued + uncached * (1 + streams) + 2 * decoded_beside


def rank_replicas(
    request: EngineRequest, replicas: Mapping[str, ReplicaState], keys: Sequence[bytes] | None = None
) -> list[str]:
    """Names of the replicas to try, the best first.

    Replicas that the request avoids, and unresponsive ones, are named only where there is no other. keys: block_keys of
    the prompt, where the caller has them.
    """
    keys = block_keys(request.prompt_ids) if keys is None else keys
    keys = keys[: (len(request.prompt_ids) - 1) // BLOCK_TOKENS]  # the last token is always computed
    if (holder := replicas.get(request.prefix_replica)) is not None:
        holder.add_cached(keys[: request.prefix_tokens // BLOCK_TOKENS])
    usable = {
        name: replica
        for name, replica in replicas.items()
        if name not in request.avoid_replicas and not replica.unresponsive
    } or replicas
    candidates = _candidates(keys, usable)
    fastest = max((replica.prefill_tokens_per_s for replica in usable.values()), default=0.0) or 1.0

    def wait_s(replica: ReplicaState) -> float:
        speed = replica.prefill_tokens_per_s or fastest
        return replica.cost(request, keys) / (fastest if speed >= _EQUAL_SPEED * fastest else speed)

    waits = {name: wait_s(usable[name]) for name in candidates}
    # Waits that differ by less than a block's time are equal, and the order of the candidates decides.
    shortest = min(waits.values(), default=0.0) + BLOCK_TOKENS / fastest
    return sorted(candidates, key=lambda name: max(waits[name], shortest))


def _candidates(keys: Sequence[bytes], replicas: Mapping[str, ReplicaState]) -> list[str]:
    """The few replicas to compare, in the order in which equal ones are preferred."""
    names = list(replicas)
    drawn = names if len(names) <= _RANDOM_CANDIDATES + 1 else random.sample(names, _RANDOM_CANDIDATES)
    if not keys or not names:
        return drawn
    cached = {name: replica.cached_tokens(keys) for name, replica in replicas.items()}
    best = max(names, key=cached.__getitem__)
    owner = max(names, key=lambda name: blake2b(name.encode(), key=keys[0], digest_size=8).digest())
    return list(dict.fromkeys([*([best] if cached[best] else []), owner, *drawn]))
