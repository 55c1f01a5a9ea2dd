"""The routers' own policy (deployments.routing.policy), choosing among the capacity planner's replicas."""

import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from deployments.common.messages import EngineRequest, ReplicaStats, Sampling
from deployments.common.prefix import block_keys
from deployments.routing.fleet import Fleet
from deployments.routing.policy import rank_replicas
from deployments.routing.prefix_holders import pack

if TYPE_CHECKING:
    from cluster.plan.engine import SimulatedReplica
    from cluster.plan.load import TraceRequest

_VOCABULARY = 1 << 30


class SimulatedPolicy:
    """Chooses as a single router does, which knows of all requests."""

    def __init__(self, replicas: int, kv_tokens: int, speed: float, clock: Callable[[], float]) -> None:
        """speed: prompt tokens a second of a replica. clock: the simulated time."""
        # At its very beginning nothing has been evicted, as in Unix time.
        self._fleet = Fleet(clock=clock, unix_clock=lambda: 1.0 + clock())
        self._names = [str(index) for index in range(replicas)]
        self._stats = ReplicaStats(speed, kv_tokens)
        for name in self._names:
            self._fleet.join(name).update(self._stats)
        self._chosen = 0
        self._up = set(self._names)
        self._ended: set[int] = set()

    def choose(self, request: "TraceRequest", replicas: "Sequence[SimulatedReplica]", up: Sequence[int]) -> int:
        """The index of the replica that a router would try first, of those that are up."""
        if len(replicas) == 1:
            return 0
        for index in self._ended:
            evicted_before = 1.0 + replicas[index].prefixes.evicted_before
            self._fleet[self._names[index]].update(msgspec.structs.replace(self._stats, evicted_before=evicted_before))
        self._ended.clear()
        self._chosen += 1
        self._request = _engine_request(request, self._chosen)
        if len(up) != len(self._up):  # replicas start and stop in their order
            self._up = {self._names[index] for index in up}
        return int(rank_replicas(self._request, self._fleet, among=self._up)[0])

    def sent(self, number: int, request: "TraceRequest", replica: int) -> None:
        """The request of this number, just chosen for, has gone to the replica."""
        if len(self._names) > 1:
            assigned = msgspec.structs.replace(self._request, attempt_id=number)
            self._fleet[self._names[replica]].assign(assigned, pack(block_keys(assigned.prompt_ids)))

    def begun(self, number: int, replica: int) -> None:
        """Its first token has been generated."""
        self._fleet[self._names[replica]].record_tokens(number, 1)

    def ended(self, number: int, replica: int) -> None:
        """Its last token has been generated."""
        self._fleet[self._names[replica]].finish(number)
        self._ended.add(replica)


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
