"""The routers' own policy (deployments.routing.policy), choosing among the capacity planner's replicas."""

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from deployments.common.messages import EngineRequest, ReplicaStats, Sampling
from deployments.common.prefix import block_keys
from deployments.routing.policy import ReplicaState, rank_replicas

if TYPE_CHECKING:
    from cluster.plan.engine import SimulatedReplica
    from cluster.plan.load import TraceRequest

_VOCABULARY = 1 << 30


class SimulatedPolicy:
    """Chooses as a single router does, which knows of all requests."""

    def __init__(self, replicas: int, kv_tokens: int, speed: float) -> None:
        """speed: prompt tokens a second of a replica."""
        self._states = [ReplicaState() for _ in range(replicas)]
        for state in self._states:
            state.update(ReplicaStats(speed, kv_tokens))
        self._chosen = 0

    def choose(self, request: "TraceRequest", replicas: "Sequence[SimulatedReplica]", up: Sequence[int]) -> int:
        """The index of the replica that a router would try first, of those that are up."""
        if len(self._states) == 1:
            return 0
        self._chosen += 1
        self._request = _engine_request(request, self._chosen)
        return int(rank_replicas(self._request, {str(index): self._states[index] for index in up})[0])

    def sent(self, number: int, request: "TraceRequest", replica: int) -> None:
        """The request of this number, just chosen for, has gone to the replica."""
        if len(self._states) > 1:
            assigned = msgspec.structs.replace(self._request, attempt_id=number)
            self._states[replica].assign(assigned, block_keys(assigned.prompt_ids))

    def begun(self, number: int, replica: int) -> None:
        """Its first token has been generated."""
        self._states[replica].record_tokens(number, 1)

    def ended(self, number: int, replica: int) -> None:
        """Its last token has been generated."""
        self._states[replica].finish(number)


def _engine_request(request: "TraceRequest", number: int) -> EngineRequest:
    """A prompt of token ids that starts like those of its conversation and of its system prompt."""
    shared = request.prefix_tokens if request.prefix != "" else 0
    own = request.session if request.session != "" else request.question if request.question != "" else f"lone {number}"
    ids = _ids(f"prefix {request.prefix}", shared) + _ids(f"own {own}", request.prompt - shared)
    return EngineRequest(ids, Sampling(request.output))


def _ids(name: str, count: int) -> list[int]:
    """Ids that no other name has in this order."""
    start = zlib.crc32(name.encode()) % _VOCABULARY
    return list(range(start, start + count))
