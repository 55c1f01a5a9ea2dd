"""The routers' own policy (deployments.routing.policy), choosing among the capacity planner's replicas."""

import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from deployments.common.messages import EngineRequest, PendingWork, ReplicaStats, Sampling
from deployments.common.prefix import block_keys
from deployments.routing.fleet import Fleet
from deployments.routing.policy import rank_replicas
from deployments.routing.prefix_holders import pack

if TYPE_CHECKING:
    from cluster.plan.engine import SimulatedReplica
    from cluster.plan.load import TraceRequest

_VOCABULARY = 1 << 30


class SimulatedPolicy:
    """Chooses as a router does: a single one, which knows of all requests, or one of several."""

    def __init__(
        self,
        replicas: int,
        kv_tokens: int,
        speed: float,
        clock: Callable[[], float],
        router_id: str = "",
        max_num_seqs: int = 0,
    ) -> None:
        """speed: prompt tokens a second of a replica. clock: the simulated time. router_id: of one of several routers,
        to which `reported` brings the others' work. max_num_seqs: of a replica; 0: the policy does not know it."""
        # At its very beginning nothing has been evicted, as in Unix time.
        self._fleet = Fleet(router_id, clock, unix_clock=lambda: 1.0 + clock())
        self._names = [str(index) for index in range(replicas)]
        self._stats = [ReplicaStats(speed, kv_tokens, max_num_seqs=max_num_seqs)] * replicas
        for name, stats in zip(self._names, self._stats, strict=True):
            self._fleet.join(name).update(stats)
        self._chosen = 0
        self._up = set(self._names)
        self._ended: set[int] = set()

    def choose(
        self,
        request: "TraceRequest",
        replicas: "Sequence[SimulatedReplica]",
        up: Sequence[int],
        full: Collection[int] = (),
    ) -> int:
        """The index of the replica that a router would try first, of those that are up. full: those that have refused
        the request."""
        if len(replicas) == 1:
            return 0
        for index in self._ended:
            evicted_before = 1.0 + replicas[index].prefixes.evicted_before
            self._update(index, msgspec.structs.replace(self._stats[index], evicted_before=evicted_before))
        self._ended.clear()
        self._chosen += 1
        avoided = tuple(self._names[index] for index in full)
        self._request = msgspec.structs.replace(_engine_request(request, self._chosen), avoid_replicas=avoided)
        if len(up) != len(self._up):  # replicas start and stop in their order
            self._up = {self._names[index] for index in up}
        return int(rank_replicas(self._request, self._fleet, among=self._up)[0])

    def reported(self, replica: int, pending: Mapping[str, PendingWork]) -> None:
        """The replica has reported the work that it has of each router."""
        self._update(replica, msgspec.structs.replace(self._stats[replica], pending=dict(pending)))

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

    def _update(self, replica: int, stats: ReplicaStats) -> None:
        self._stats[replica] = stats
        self._fleet[self._names[replica]].update(stats)


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
