"""What routers tell each other about their queues, several times a second (deployments.routing.heartbeat)."""

import msgspec

MAX_TEAMS = 128
"""A router reports this many teams at most: those with the most requests."""


class TeamDemand(msgspec.Struct, frozen=True, array_like=True):
    """A team's requests at one router, running and waiting together. weight: its share under load.

    people, batches: how many; both 0 where it has only asked lately.
    """

    weight: float
    people: int = 0
    batches: int = 0

    @property
    def requests(self) -> int:
        """All of its requests."""
        return self.people + self.batches


class RouterDemand(msgspec.Struct, frozen=True, array_like=True):
    """One router's requests for one model. running: those that have a slot."""

    running: int = 0
    teams: dict[str, TeamDemand] = {}
