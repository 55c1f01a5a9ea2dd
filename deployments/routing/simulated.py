"""The routers' own policy (deployments.routing.policy), choosing among the capacity planner's replicas."""

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from deployments.common.messages import EngineRequest, ReplicaStats, Sampling
from deployments.routing import policy

if TYPE_CHECKING:
    from cluster.plan.engine import SimulatedReplica
    from cluster.plan.load import TraceRequest as Asked

_VOCABULARY = 1 << 30


class SimulatedPolicy:
    """Chooses as a router does that knows all replicas."""

    def __init__(self, replicas: int, kv_tokens: int, speed: float) -> None:
        """speed: prompt tokens a second of a replica."""
        self._known = {str(number): policy.ReplicaState() for number in range(replicas)}
        self._standing = ReplicaStats(speed, kv_tokens)
        for one in self._known.values():
            one.update(self._standing)
        self._asked = 0

    def choose(self, request: "Asked", replicas: "Sequence[SimulatedReplica]", up: Sequence[int]) -> int:
        """The replica that a router would try first."""
        if len(self._known) == 1:
            return 0
        self._asked += 1
        self._request = _as_sent(request, self._asked)
        return int(policy.rank_replicas(self._request, {str(place): self._known[str(place)] for place in up})[0])

    def sent(self, number: int, request: "Asked", replica: int) -> None:
        """Notes the request as a router does."""
        if len(self._known) > 1:
            self._known[str(replica)].assign(str(number), msgspec.structs.replace(self._request, attempt_id=number))

    def begun(self, number: int, replica: int) -> None:
        """Notes that its prompt has been computed."""
        policy.record_tokens(number, 1)

    def ended(self, number: int, replica: int) -> None:
        """Notes that it is over."""
        self._known[str(replica)].finish(str(number))


def _as_sent(request: "Asked", number: int) -> EngineRequest:
    """A prompt of token ids that begins like those of its conversation and of its system prompt."""
    shared = request.prefix_tokens if request.prefix != "" else 0
    own = request.session if request.session != "" else request.question if request.question != "" else f"lone {number}"
    ids = _ids(f"prefix {request.prefix}", shared) + _ids(f"own {own}", request.prompt - shared)
    return EngineRequest(ids, Sampling(request.output))


def _ids(name: str, count: int) -> list[int]:
    """Ids that no other name has in this order."""
    start = zlib.crc32(name.encode()) % _VOCABULARY
    return list(range(start, start + count))
