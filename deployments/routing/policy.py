"""Picks the replica where the request adds the least total waiting time, given what it has cached and queued.

Waiting time is counted in prompt tokens and divided by the replica's speed. A request waits for the prompts before it,
and for what of its own prompt is not cached; while that is computed, every stream on the replica waits as well; and
streams that decode beside each other make each other's steps longer. So a conversation, or requests with one system
prompt, return to where their KV cache is, until so many are served there that computing the prompt elsewhere costs
less. A prompt that no replica is known to hold goes to the replica that a hash ring over its first block names: all
routers agree on it without asking each other.

What a replica has cached is known from the prompts that this router sent it, from what other routers recorded
(deployments.routing.prefix_index), and from what the replica says of the blocks that it has evicted.

Of many replicas only a few are compared: those that hold most of the prompt, the one by hashing, and two at random. So
routers that learn the same a second late do not all run to the same replica (Mitzenmacher, The power of two choices,
2001), and a choice takes as long among a thousand replicas as among ten. Where those two are full, some more are looked
at for one that has room.
"""

import random
from collections.abc import Callable, Collection, Sequence

from deployments.common.messages import EngineRequest
from deployments.common.prefix import BLOCK_TOKENS, block_keys
from deployments.routing.fleet import Fleet, ReplicaState
from deployments.routing.prefix_holders import PackedKeys, PrefixMatch, first_blocks, pack

_HOLDERS = 2
_RANDOM_CANDIDATES = 2
_DRAWS = 6
"""Replicas drawn at random, to find those candidates; where too few of them are usable, all are looked at."""
_MORE_DRAWS = 24
"""Further replicas drawn at random where all of the candidates are full, to find some that are not."""
_EQUAL_SPEED = 0.8
"""Share of the fastest candidate's speed from which a replica counts as equally fast: measurements of equal nodes
differ by as much. Otherwise routers that read the speeds at different moments would send one prompt to different
replicas."""


def rank_replicas(
    request: EngineRequest,
    fleet: Fleet,
    keys: PackedKeys | None = None,
    among: Collection[str] | None = None,
) -> list[str]:
    """Names of the replicas to try, the best first.

    Replicas that the request avoids, and unresponsive ones, are named only where there is no other. keys: of the
    prompt's blocks, where the caller has them. among: only these are named; None: all of the fleet.
    """
    keys = pack(block_keys(request.prompt_ids)) if keys is None else keys
    keys = first_blocks(keys, (len(request.prompt_ids) - 1) // BLOCK_TOKENS)  # the last token is always computed
    if (holder := fleet.get(request.prefix_replica)) is not None:
        holder.add_cached(first_blocks(keys, request.prefix_tokens // BLOCK_TOKENS))
    among = fleet if among is None else among

    def known(name: str) -> bool:
        return name in fleet and name in among

    def usable(name: str) -> bool:
        return known(name) and name not in request.avoid_replicas and not fleet[name].unresponsive

    prefix = fleet.prefixes.match(keys)
    names = _candidates(keys, prefix, fleet, usable) or _candidates(keys, prefix, fleet, known)
    candidates = {name: fleet[name] for name in names}
    fastest = max((replica.prefill_tokens_per_s for replica in candidates.values()), default=0.0) or 1.0

    def wait_s(replica: ReplicaState) -> float:
        speed = replica.prefill_tokens_per_s or fastest
        return replica.cost(request, prefix) / (fastest if speed >= _EQUAL_SPEED * fastest else speed)

    waits = {name: wait_s(replica) for name, replica in candidates.items()}
    # Waits that differ by less than a block's time are equal, and the order of the candidates decides.
    shortest = min(waits.values(), default=0.0) + BLOCK_TOKENS / fastest
    return sorted(candidates, key=lambda name: max(waits[name], shortest))


def _candidates(keys: PackedKeys, prefix: PrefixMatch, fleet: Fleet, usable: Callable[[str], bool]) -> list[str]:
    """The few replicas to compare, in the order in which equal ones are preferred."""
    drawn = _drawn(fleet.names, usable)
    if all(fleet[name].full for name in drawn) and len(fleet.names) > len(drawn):
        more = random.sample(fleet.names, min(_MORE_DRAWS, len(fleet.names)))
        drawn = [name for name in more if usable(name) and not fleet[name].full][:_RANDOM_CANDIDATES] or drawn
    if not keys or not drawn:
        return drawn
    owner = next(filter(usable, fleet.ring.owners(keys)))
    holders = [fleet.name_of(number) for number in prefix.longest(lambda one: usable(fleet.name_of(one)), _HOLDERS)]
    # Where the owner holds as much, all routers prefer it.
    if holders and fleet[owner].cached_tokens(prefix) == fleet[holders[0]].cached_tokens(prefix):
        holders = [owner, *holders]
    return list(dict.fromkeys([*holders, owner, *drawn]))


def _drawn(names: Sequence[str], usable: Callable[[str], bool]) -> list[str]:
    """Two usable replicas at random; all, if there are three."""
    few = len(names) <= _DRAWS
    found = list(filter(usable, names if few else random.sample(names, _DRAWS)))
    if not few and len(found) < _RANDOM_CANDIDATES:
        found = list(filter(usable, names))
    return found if len(found) <= _RANDOM_CANDIDATES + 1 else random.sample(found, _RANDOM_CANDIDATES)
