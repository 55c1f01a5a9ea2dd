"""A request router that gives each request to the next replica: what Dray's dispatch is compared with."""

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica


class RoundRobin(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray is not typed
    """One after the other."""

    def initialize_state(self) -> None:
        """Called by Serve once it has made this object."""
        self._next = 0

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The next, and behind it all."""
        self._next = (self._next + 1) % len(candidate_replicas)
        return [[candidate_replicas[self._next]], candidate_replicas]
