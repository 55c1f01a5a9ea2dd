"""How a request queues: which team's share of the engines it uses, whether people go first, and what it costs."""

from dataclasses import dataclass

import msgspec


class QueueClass(msgspec.Struct, frozen=True, array_like=True):
    """Decides when a request gets a slot at the engines. Routers exchange it in Redis.

    team: whose share the request uses. weight: the team's share under load. batch: requests of people go first.
    """

    team: str
    weight: float
    batch: bool

    @property
    def priority(self) -> int:
        """For `EngineRequest`: 0 for people, 1 for batch work."""
        return int(self.batch)

    @property
    def urgency(self) -> tuple[bool, float]:
        """Sorts queue classes, the most urgent first."""
        return self.batch, -self.weight


@dataclass(frozen=True, slots=True)
class TokenCost:
    """The expected cost of a request, in tokens. batch: it goes after those of people."""

    prompt_tokens: int
    completion_tokens: int
    batch: bool = False

    @property
    def tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens
