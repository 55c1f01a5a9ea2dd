"""What Serve calls to route requests to engine replicas (`request_router_class` of the engines' deployment).

Serve sends the classes of this module by value, not by name (ray 2.60). So all state, and all that cannot be pickled,
is elsewhere: deployments.routing.registry.
"""

import random

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deployments.common import messages
from deployments.routing.registry import registry

_OTHERS = 32
"""Replicas that are asked at once whether they take a request, where the best few do not."""


class PrefixAwareRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray is not typed
    """Gives each request to the replica that deployments.routing.policy ranks first and that has room for it."""

    def initialize_state(self) -> None:
        """Called by Serve after it has created this object."""
        self._engines = registry().replicas_of(self.app_name)
        self._reports: dict[str, tuple[bytes, messages.ReplicaStats]] = {}
        self._candidates: list[RunningReplica] = []
        self._by_name: dict[str, RunningReplica] = {}

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called when replicas join or leave, and when one reports new statistics."""
        super().update_replicas(replicas)
        self._reports = {(name := replica.replica_id.unique_id): self._report(name, replica) for replica in replicas}
        self._engines.update({name: stats for name, (_, stats) in self._reports.items()})

    def _report(self, name: str, replica: RunningReplica) -> tuple[bytes, messages.ReplicaStats]:
        """What a replica reports, as Serve has it and decoded. One report makes Serve pass on those of all."""
        raw = (replica.routing_stats or {}).get(messages.ROUTING_STATS, b"")
        known = self._reports.get(name)
        if known is not None and known[0] == raw:
            return known
        # A replica that has just started has not been asked yet.
        return raw, messages.decode_stats(raw) if raw else messages.ReplicaStats()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas to try, one by one; behind the few that were compared, some others at once.

        Serve asks again while none of these has room.
        """
        if pending_request is None or len(candidate_replicas) < 2:
            return [candidate_replicas]
        if candidate_replicas is not self._candidates:  # Serve has one list until the replicas change
            self._candidates = candidate_replicas
            self._by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        names = self._engines.choose(_engine_request(pending_request), self._by_name)
        ranked = [self._by_name[name] for name in names]
        others = random.sample(candidate_replicas, min(len(candidate_replicas), _OTHERS))
        return [*([replica] for replica in ranked), [replica for replica in others if replica not in ranked]]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: object) -> None:
        """Called when a replica has taken a request."""
        self._engines.accepted(_engine_request(pending_request), replica_id.unique_id)

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """Called when a replica has answered whether it takes a request."""
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)
        self._engines.probe_acked(replica_id.unique_id)


def _engine_request(pending: PendingRequest) -> messages.EngineRequest:
    return messages.decode_request(pending.args[0])
