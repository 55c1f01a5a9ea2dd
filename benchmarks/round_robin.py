"""A request router that sends each request to the next replica, as a baseline for Dray's policy."""

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica


class RoundRobin(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray is not typed
    """Uses the replicas in turn."""

    def initialize_state(self) -> None:
        """Called by Serve after it has created this object."""
        self._next = 0

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The next replica first, then all."""
        self._next = (self._next + 1) % len(candidate_replicas)
        return [[candidate_replicas[self._next]], candidate_replicas]
