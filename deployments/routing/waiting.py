"""What a router's queue knows of a team, and of a request that waits in it."""

import asyncio
from dataclasses import dataclass, field

from deployments.routing.queue_class import TokenCost


@dataclass(slots=True)
class QueuedTeam:
    """A team's requests at one model. paid_until: the virtual time at which its last request is paid for."""

    paid_until: float = 0.0
    running: int = 0
    waiting: int = 0


@dataclass(slots=True, order=True)
class WaitingRequest:
    """A waiting request. Ordered: people first, then by start tag, then by arrival."""

    batch: bool
    start_tag: float
    number: int
    team: str = field(compare=False)
    weight: float = field(compare=False)
    virtual_cost: float = field(compare=False)
    cost: TokenCost = field(compare=False)
    granted: asyncio.Future[None] = field(compare=False)
