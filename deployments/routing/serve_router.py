"""What Serve calls to route requests to engine replicas (`request_router_class` of the engines' deployment).

Serve sends the classes of this module by value, not by name (ray 2.60). So all state, and all that cannot be pickled,
is elsewhere: deployments.routing.registry.
"""

import msgspec
from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deployments.common import messages
from deployments.routing.registry import registry


class PrefixAwareRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray is not typed
    """Gives each request to the replica that deployments.routing.policy ranks first and that has room for it."""

    def initialize_state(self) -> None:
        """Called by Serve after it has created this object."""
        self._engines = registry().replicas_of(self.app_name)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called when replicas join or leave, and when one reports new statistics."""
        super().update_replicas(replicas)
        self._engines.update(
            {
                replica.replica_id.unique_id: msgspec.convert(replica.routing_stats or {}, messages.ReplicaStats)
                for replica in replicas
            }
        )

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas to try, one by one; behind the few that were compared, all others at once."""
        if pending_request is None or len(candidate_replicas) < 2:
            return [candidate_replicas]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        ranked = [by_name.pop(name) for name in self._engines.choose(_engine_request(pending_request), tuple(by_name))]
        return [*([replica] for replica in ranked), list(by_name.values())]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: object) -> None:
        """Called when a replica has taken a request."""
        self._engines.accepted(_engine_request(pending_request), replica_id.unique_id)

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """Called when a replica has answered whether it takes a request."""
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)
        self._engines.probe_acked(replica_id.unique_id)


def _engine_request(pending: PendingRequest) -> messages.EngineRequest:
    return messages.decode_request(pending.args[0])
