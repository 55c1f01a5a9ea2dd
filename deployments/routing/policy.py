"""Which engine replica: the one where a request costs all who wait the least time, by what is cached there and what
there is still to do.

What is cached it knows of what it sent there itself, and of what other routers have told
(deployments.routing.prefix_index). That time is counted in prompt tokens, over the replica's speed. The request waits
for the prompts before it, and for what of its own is not cached; while that is computed, every stream there waits as
well; and its decoding makes their steps longer, as theirs make its own. So a system prompt and a conversation go back
to where their KV cache is, unless so many are served there that computing it anew elsewhere is the lesser evil. What
no replica is known to hold goes to the one that all routers would take for it (rendezvous hashing over its first
block), so that they agree without asking each other.

Of many replicas only a few are looked at: the best by its cache, the one by hashing, and two at random; so routers that
know the same a second late do not all run to the same one (Mitzenmacher, The power of two choices, 2001).
"""

import random
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b

from deployments.common.messages import TYPICAL_COMPLETION_TOKENS, EngineRequest, ReplicaStats
from deployments.common.prefix import BLOCK_TOKENS, PrefixMirror, block_keys

ROUTER_ID = secrets.token_hex(4)
"""Names this process in what it asks of replicas."""

_RANDOM = 2
_KV_TOKENS = 65_536
"""Tokens that a replica's cache holds, until it has said."""
_EQUAL_SPEED = 0.8
"""Of the fastest one's speed: whoever has so much is taken for as fast, since equal nodes are measured so differently.
Otherwise routers that heard of speeds at different moments would take one prompt to different replicas."""
_UNRESPONSIVE_S = 2.0
"""A replica that has not said within this time whether it takes a request is taken last."""

_watchers: dict[str, Callable[[int], None]] = {}
_replicas: dict[str, int] = {}


def watch(application: str, replicas: Callable[[int], None]) -> None:
    """Has this called with the number of replicas of an engines' application, whenever it changes."""
    _watchers[application] = replicas


def counted(application: str, replicas: int) -> None:
    """Tells whoever watches the application."""
    _replicas[application] = replicas
    if (tell := _watchers.get(application)) is not None:
        tell(replicas)


def replicas_of(application: str) -> int:
    """Replicas of the application that could answer now."""
    return _replicas.get(application, 0)


class _Assignment:
    """A request that a replica was given: its tokens that are still to be computed, as far as is known here.

    most: that its completion may still have.
    """

    __slots__ = ("most", "number", "prompt")

    def __init__(self, number: int, prompt: int, most: int) -> None:
        self.number, self.prompt, self.most = number, prompt, most

    @property
    def completion(self) -> int:
        """How long it goes on is known no better after many tokens than before the first."""
        return max(1, min(self.most, TYPICAL_COMPLETION_TOKENS))


_under_way: dict[int, _Assignment] = {}


def record_tokens(number: int, tokens: int) -> None:
    """Notes new tokens of a request, by its number: its prompt has been computed, and so much less may come."""
    if (sent := _under_way.get(number)) is not None:
        sent.prompt, sent.most = 0, sent.most - tokens


class ReplicaState:
    """What this router knows of one replica."""

    def __init__(self) -> None:
        self._standing = ReplicaStats()
        self._held = PrefixMirror(_KV_TOKENS // BLOCK_TOKENS)
        self._sent: dict[str, _Assignment] = {}
        self._asked = self._heard = 0.0

    def update(self, standing: ReplicaStats) -> None:
        """Takes what the replica says of itself. It may be told the same again because of another one's news."""
        if standing != self._standing:
            self._heard = time.monotonic()
        if standing.kv_tokens not in (0, self._standing.kv_tokens):
            self._held.resize(standing.kv_tokens // BLOCK_TOKENS)
        self._standing = standing

    def probe_sent(self) -> None:
        """Notes that it is asked now whether it takes a request."""
        self._asked = self._asked or time.monotonic()

    def probe_acked(self) -> None:
        """Notes that it has said whether it does."""
        self._asked = 0.0

    @property
    def unresponsive(self) -> bool:
        """Whether it has not said so for too long: its node may be gone."""
        return self._asked > 0 and time.monotonic() - self._asked > _UNRESPONSIVE_S

    def assign(self, key: str, request: EngineRequest) -> None:
        """Notes a request that it is given, by a key that nothing else under way has."""
        keys = block_keys(request.prompt_ids)
        sent = _Assignment(
            request.attempt_id, len(request.prompt_ids) - self.cached_tokens(keys), request.sampling.max_tokens
        )
        self._sent[key] = _under_way[request.attempt_id] = sent
        self._held.add(keys)

    def add_cached(self, keys: Sequence[bytes]) -> None:
        """Notes blocks that another router had it compute."""
        self._held.add(keys)

    def finish(self, key: str) -> None:
        """Notes that this one is over, however it went."""
        if (sent := self._sent.pop(key, None)) is not None:
            _under_way.pop(sent.number, None)

    def cached_tokens(self, keys: Sequence[bytes]) -> int:
        """Tokens of a prompt that it need not compute."""
        return self._held.match(keys)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens a second; 0 while it is not known."""
        return self._standing.prefill_tokens_per_s

    def cost(self, request: EngineRequest, keys: Sequence[bytes]) -> int:
        """Time that the request costs all who wait here, in prompt tokens."""
        own, completion = (
            len(request.prompt_ids) - self.cached_tokens(keys),
            min(request.sampling.max_tokens, TYPICAL_COMPLETION_TOKENS),
        )
        prompts = others = beside = streams = 0
        for one in self._sent.values():
            prompts += one.prompt
            beside += min(one.completion, completion)
            streams += 1
        for router, work in self._standing.pending.items():
            if router != ROUTER_ID:
                others += work.prompt_tokens
                beside += min(work.completion_tokens, work.streams * completion)
                streams += work.streams
        # It has computed since then.
        prompts += max(0, others - round(self.prefill_tokens_per_s * (time.monotonic() - self._heard)))
        # A stream makes the step of another longer by about as much as a prompt token (0.9 to 2 times, on one core).
        return prompts + own * (1 + streams) + 2 * beside


def rank_replicas(request: EngineRequest, replicas: dict[str, ReplicaState]) -> list[str]:
    """Names of replicas for a request, the best first; those that it avoids, and silent ones, only where there is no
    other."""
    wanted = {
        name: one for name, one in replicas.items() if name not in request.avoid_replicas and not one.unresponsive
    } or replicas
    keys = block_keys(request.prompt_ids[:-1])
    if (home := replicas.get(request.prefix_replica)) is not None:
        home.add_cached(keys[: request.prefix_tokens // BLOCK_TOKENS])
    names = list(wanted)
    few = names if len(names) <= _RANDOM + 1 else random.sample(names, _RANDOM)
    if keys:
        cached = {name: one.cached_tokens(keys) for name, one in wanted.items()}
        best = max(names, key=cached.__getitem__)
        owner = max(names, key=lambda name: blake2b(name.encode(), key=keys[0], digest_size=8).digest())
        few = list(dict.fromkeys([*([best] if cached[best] else []), owner, *few]))
    usual = max((one.prefill_tokens_per_s for one in wanted.values()), default=0.0) or 1.0
    speeds = {name: wanted[name].prefill_tokens_per_s or usual for name in few}
    costs = {
        name: wanted[name].cost(request, keys) / (usual if speed >= _EQUAL_SPEED * usual else speed)
        for name, speed in speeds.items()
    }
    # Within a block's worth they are alike, and the order in which they were thought of decides.
    alike = min(costs.values()) + BLOCK_TOKENS / usual
    return sorted(few, key=lambda name: max(costs[name], alike))


class PendingAssignments:
    """Requests that replicas have been chosen for and have not taken yet: the next choice knows of them. One of which
    nothing comes is forgotten."""

    def __init__(self) -> None:
        self._planned: OrderedDict[str, tuple[ReplicaState, float]] = OrderedDict()

    def choose(self, key: str, request: EngineRequest, replicas: dict[str, ReplicaState]) -> list[str]:
        """Names of replicas to try, the best first; it is taken for the one that will have the request. key: names the
        request, which may be chosen for again."""
        now = time.monotonic()
        self._over(key)
        while self._planned and next(iter(self._planned.values()))[1] < now:
            self._over(next(iter(self._planned)))
        names = rank_replicas(request, replicas)
        first = replicas[names[0]]
        first.probe_sent()
        first.assign(key, request)
        self._planned[key] = (first, now + _UNRESPONSIVE_S)
        return names

    def accepted(self, key: str, request: EngineRequest, replica: ReplicaState) -> None:
        """Notes the one that has taken it."""
        if key not in self._planned or self._planned[key][0] is not replica:
            self._over(key)
            replica.assign(key, request)
        self._planned.pop(key, None)

    def _over(self, key: str) -> None:
        if (planned := self._planned.pop(key, None)) is not None:
            planned[0].finish(key)
