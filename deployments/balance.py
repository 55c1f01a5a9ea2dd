"""Which engine replica: the one that will be first to answer, by what it has cached and what it has still to do.

A replica's cost for a request is the tokens that stand before it there, and those of its own that are not cached, over
the replica's speed. Prompts are known by blocks, so a system prompt and a conversation go back to where their KV cache
is, unless so much waits there that computing them anew elsewhere is sooner done. What no replica is known to hold goes
to the one that all routers would take for it (rendezvous hashing over its first block), so that they agree without
asking each other.

Of many replicas only a few are looked at: the best by its cache, the one by hashing, and two at random; so routers that
know the same a second late do not all run to the same one (Mitzenmacher, The power of two choices, 2001).
"""

import random
import secrets
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b

from deployments.engine.prefix import BLOCK_TOKENS, PrefixMirror, block_keys
from deployments.engine.wire import TYPICAL_TOKENS, Request, Standing

ROUTER = secrets.token_hex(4)
"""Names this process in what it asks of replicas."""

_RANDOM = 2
_KV_TOKENS = 65_536
"""Tokens that a replica's cache holds, until it has said."""
_SILENT_S = 2.0
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


class _Sent:
    """A request that a replica was given: its tokens that are still to be computed, as far as is known here."""

    __slots__ = ("completion", "number", "prompt")

    def __init__(self, number: int, prompt: int, completion: int) -> None:
        self.number, self.prompt, self.completion = number, prompt, completion


_under_way: dict[int, _Sent] = {}


def made(number: int, tokens: int) -> None:
    """Notes new tokens of a request, by its number: its prompt has been computed, and so much less is to come."""
    if (sent := _under_way.get(number)) is not None:
        sent.prompt, sent.completion = 0, max(1, sent.completion - tokens)


class Replica:
    """What this router knows of one replica."""

    def __init__(self) -> None:
        self._standing = Standing()
        self._held = PrefixMirror(_KV_TOKENS // BLOCK_TOKENS)
        self._sent: dict[str, _Sent] = {}
        self._asked = 0.0

    def heard(self, standing: Standing) -> None:
        """Takes what the replica says of itself."""
        if standing.kv_tokens not in (0, self._standing.kv_tokens):
            self._held.resize(standing.kv_tokens // BLOCK_TOKENS)
        self._standing = standing

    def asked(self) -> None:
        """Notes that it is asked now whether it takes a request."""
        self._asked = self._asked or time.monotonic()

    def spoke(self) -> None:
        """Notes that it has said whether it does."""
        self._asked = 0.0

    @property
    def silent(self) -> bool:
        """Whether it has not said so for too long: its node may be gone."""
        return self._asked > 0 and time.monotonic() - self._asked > _SILENT_S

    def sent(self, key: str, request: Request) -> None:
        """Notes a request that it was given, by a key that nothing else under way has."""
        keys = block_keys(request.prompt)
        completion = _completion(request)
        sent = _Sent(request.number, self.cost(request, keys) - completion, completion)
        self._sent[key] = _under_way[request.number] = sent
        self._held.add(keys)

    def answered(self, key: str) -> None:
        """Notes that this one is over, however it went."""
        if (sent := self._sent.pop(key, None)) is not None:
            _under_way.pop(sent.number, None)

    def cached(self, keys: Sequence[bytes]) -> int:
        """Tokens of a prompt that it need not compute."""
        return self._held.match(keys)

    def cost(self, request: Request, keys: Sequence[bytes]) -> int:
        """Tokens that it has to compute for a request."""
        return len(request.prompt) - self.cached(keys) + _completion(request)

    @property
    def speed(self) -> float:
        """Prompt tokens a second; 0 while it is not known."""
        return self._standing.speed

    @property
    def waiting(self) -> int:
        """Tokens still to be computed: for this router as it knows itself, for the others as of a moment ago."""
        others = sum(tokens for router, tokens in self._standing.waiting.items() if router != ROUTER)
        return others + sum(one.prompt + one.completion for one in self._sent.values())


def _completion(request: Request) -> int:
    return min(request.sampling.max_tokens, TYPICAL_TOKENS)


def choose(request: Request, replicas: dict[str, Replica]) -> list[str]:
    """Names of replicas for a request, the best first; those that it avoids, and silent ones, only where there is no
    other."""
    wanted = {name: one for name, one in replicas.items() if name not in request.avoid and not one.silent} or replicas
    keys = block_keys(request.prompt[:-1])
    names = list(wanted)
    few = names if len(names) <= _RANDOM + 1 else random.sample(names, _RANDOM)
    if keys:
        cached = {name: one.cached(keys) for name, one in wanted.items()}
        best = max(names, key=cached.__getitem__)
        owner = max(names, key=lambda name: blake2b(name.encode(), key=keys[0], digest_size=8).digest())
        few = list(dict.fromkeys([*([best] if cached[best] else []), owner, *few]))
    usual = max((one.speed for one in wanted.values()), default=0.0) or 1.0
    costs = {
        name: (wanted[name].waiting + wanted[name].cost(request, keys)) / (wanted[name].speed or usual) for name in few
    }
    # Within a block's worth they are alike, and the order in which they were thought of decides.
    alike = min(costs.values()) + BLOCK_TOKENS / usual
    return sorted(few, key=lambda name: max(costs[name], alike))
