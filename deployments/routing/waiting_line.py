"""The requests that wait for a slot, by team, so that a team with thousands makes finding the next one no slower."""

import asyncio
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from deployments.routing.queue_class import TokenCost

_GONE_BEFORE_CLEANING = 16
"""A team's line is cleaned when it holds this many requests that left, and more of them than waiting ones."""


@dataclass(slots=True)
class QueuedTeam:
    """A team's requests at one model. paid_until: the virtual time at which its last request is paid for."""

    weight: float = 1.0
    paid_until: float = 0.0
    running: int = 0
    running_batches: int = 0


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
    left: bool = field(default=False, compare=False)
    """It waits no longer; its team's line may hold it a while longer."""


@dataclass(slots=True)
class _Line:
    """A team's requests, as a heap. waiting: those of them that have not left. batches: those of these of batches."""

    heap: list[WaitingRequest] = field(default_factory=list)
    waiting: int = 0
    batches: int = 0


class WaitingLine:
    """All waiting requests. count: how many. tokens, batch_tokens: their expected cost."""

    def __init__(self) -> None:
        self.count = 0
        self.tokens = 0
        self.batch_tokens = 0
        self._lines: dict[str, _Line] = {}
        self._by_cost: dict[int, WaitingRequest] = {}
        """By the identity of their cost, which each request has to itself."""

    def __iter__(self) -> Iterator[WaitingRequest]:
        return (request for line in self._lines.values() for request in line.heap if not request.left)

    @property
    def entries(self) -> int:
        """Requests that are kept, with those that left: tests watch their number."""
        return sum(len(line.heap) for line in self._lines.values())

    def waiting(self, team: str) -> int:
        """The team's waiting requests."""
        line = self._lines.get(team)
        return line.waiting if line else 0

    def batches(self, team: str) -> int:
        """Those of the team's waiting requests that are batch work."""
        line = self._lines.get(team)
        return line.batches if line else 0

    @property
    def largest(self) -> str:
        """The team with the most waiting requests; "" where none waits."""
        return max(self._lines, key=lambda team: self._lines[team].waiting, default="")

    def add(self, request: WaitingRequest) -> None:
        """The request starts to wait in its team's line."""
        line = self._lines.setdefault(request.team, _Line())
        heapq.heappush(line.heap, request)
        request.left = False
        line.waiting += 1
        line.batches += request.batch
        self.count += 1
        self.tokens += request.cost.tokens
        self.batch_tokens += request.batch * request.cost.tokens
        self._by_cost[id(request.cost)] = request

    def remove(self, request: WaitingRequest) -> None:
        """The request waits no longer."""
        line = self._lines[request.team]
        request.left = True
        line.waiting -= 1
        line.batches -= request.batch
        self.count -= 1
        self.tokens -= request.cost.tokens
        self.batch_tokens -= request.batch * request.cost.tokens
        del self._by_cost[id(request.cost)]
        if not line.waiting:
            del self._lines[request.team]
        elif len(line.heap) > 2 * line.waiting + _GONE_BEFORE_CLEANING:
            line.heap = [other for other in line.heap if not other.left]
            heapq.heapify(line.heap)

    def first(self, team: str) -> WaitingRequest | None:
        """The team's next request."""
        if (line := self._lines.get(team)) is None:
            return None
        while line.heap[0].left:
            heapq.heappop(line.heap)
        return line.heap[0]

    def firsts(self) -> list[WaitingRequest]:
        """The next request of each team, as a heap."""
        heads = [request for team in self._lines if (request := self.first(team)) is not None]
        heapq.heapify(heads)
        return heads

    def last(self, team: str) -> WaitingRequest | None:
        """The request of this team whose turn would come last; None where all of its clients have just left."""
        heap = self._lines[team].heap
        return max((request for request in heap if not request.left and not request.granted.done()), default=None)

    def find(self, cost: TokenCost) -> WaitingRequest | None:
        """The request that waits with this very object."""
        return self._by_cost.get(id(cost))
