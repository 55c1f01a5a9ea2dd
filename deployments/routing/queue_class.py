"""The queue class of a request: which team's share of the engines it uses, and whether people go first."""

import msgspec


class QueueClass(msgspec.Struct, frozen=True, array_like=True):
    """Decides when a request gets a slot at the engines. Routers exchange it in Redis.

    team: whose share the request uses. weight: the team's share under load. batch: requests of people go first.
    """

    team: str
    weight: float
    batch: bool

    @property
    def urgency(self) -> tuple[bool, float]:
        """Sorts queue classes, the most urgent first."""
        return self.batch, -self.weight
