"""What Serve asks which engine replica takes a request (`request_router_class` of the engines' deployment).

Serve sends the classes of this module by value and not by name (ray 2.60), so all that it keeps of replicas, and all
that cannot be pickled, is elsewhere: deployments.routing.policy.
"""

import msgspec
from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deployments.common import messages
from deployments.routing import policy


class PrefixAwareRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray is not typed
    """Gives each request to the replica that deployments.routing.policy chooses."""

    def initialize_state(self) -> None:
        """Called by Serve once it has made this object."""
        self._known: dict[ReplicaID, policy.ReplicaState] = {}
        self._plans = policy.PendingAssignments()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called when replicas come and go, and when one has said how it stands."""
        super().update_replicas(replicas)
        policy.counted(self.app_name, len(replicas))
        self._known = {one.replica_id: self._known.get(one.replica_id) or policy.ReplicaState() for one in replicas}
        for one in replicas:
            self._known[one.replica_id].update(msgspec.convert(one.routing_stats or {}, messages.ReplicaStats))

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas to try, one by one; all others come after the few that were looked at."""
        if pending_request is None or len(candidate_replicas) < 2:
            return [candidate_replicas]
        by_name = {one.replica_id.unique_id: one for one in candidate_replicas if one.replica_id in self._known}
        known = {name: self._known[one.replica_id] for name, one in by_name.items()}
        names = self._plans.choose(pending_request.metadata.internal_request_id, _asked(pending_request), known)
        first = [by_name[name] for name in names]
        return [*([one] for one in first), [one for one in candidate_replicas if one not in first]]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: object) -> None:
        """Called when a replica has taken a request."""
        if (replica := self._known.get(replica_id)) is not None:
            self._plans.accepted(pending_request.metadata.internal_request_id, _asked(pending_request), replica)

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """Called when a replica has said whether it takes a request."""
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)
        if (replica := self._known.get(replica_id)) is not None:
            replica.probe_acked()

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called when a request is over, however it went."""
        if (replica := self._known.get(replica_id)) is not None:
            replica.finish(internal_request_id)


def _asked(pending: PendingRequest) -> messages.EngineRequest:
    return messages.decode_request(pending.args[0])
