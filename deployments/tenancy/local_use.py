"""What one router has counted of a team: it decides while Redis is away."""

from collections import deque
from collections.abc import Callable

from cluster.records.team_records import Quota
from deployments.tenancy.quota_counters import WINDOW_S, AdmitReply, ReserveReply


class SlidingWindow:
    """Amounts of the last 60 seconds, to the second, as Redis counts them for all routers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds: deque[list[int]] = deque()

    def used(self) -> int:
        """The sum of the window."""
        oldest = int(self._clock()) - WINDOW_S
        while self._seconds and self._seconds[0][0] <= oldest:
            self._seconds.popleft()
        return sum(amount for _, amount in self._seconds)

    def add(self, amount: int) -> None:
        """Adds to the present second."""
        now = int(self._clock())
        if self._seconds and self._seconds[-1][0] == now:
            self._seconds[-1][1] += amount
        else:
            self._seconds.append([now, amount])

    def wait_s(self, limit: int, requested: int) -> int:
        """Seconds until `requested` more fits under the limit; at least 1."""
        left, wait = self.used(), 0
        for second, amount in self._seconds:
            if left + requested <= limit:
                break
            left -= amount
            wait = second + WINDOW_S - int(self._clock())
        return max(1, wait)


class LocalUse:
    """A team's use by this router."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.requests = SlidingWindow(clock)
        self.tokens = SlidingWindow(clock)
        self.running: set[str] = set()
        self.reserved: set[str] = set()
        """Reservations in Redis whose leases this router renews."""
        self.month = 0
        """Tokens of the month: of all routers as of the last reply of Redis, and this router's since."""
        self.owed = 0
        """Tokens of the month that Redis does not know of yet."""
        self.cost = 0
        """Of the month, in billionths of the currency, as `month` is."""
        self.owed_cost = 0

    def admit(self, quota: Quota, routers: int, max_cost: int = 0) -> AdmitReply:
        """Decides without Redis whether a request may start: by this router's share of each limit."""
        requests, tokens = self.requests.used(), self.tokens.used()
        max_running = _share(quota.requests_at_a_time, routers)
        max_requests = _share(quota.requests_per_minute, routers)
        max_tokens = _share(quota.tokens_per_minute, routers)
        reply = AdmitReply("", 0, requests, WINDOW_S, tokens, WINDOW_S, self.month)
        if quota.tokens_per_month and self.month >= quota.tokens_per_month:
            return reply._replace(refused_by="month")
        if max_cost and self.cost >= max_cost:
            return reply._replace(refused_by="cost")
        if max_running and len(self.running) >= max_running:
            return reply._replace(refused_by="running", wait_s=1)
        if max_requests and requests >= max_requests:
            return reply._replace(refused_by="requests", wait_s=self.requests.wait_s(max_requests, 1))
        if max_tokens and tokens >= max_tokens:
            return reply._replace(refused_by="tokens", wait_s=self.tokens.wait_s(max_tokens, 1))
        return reply._replace(requests=requests + 1)

    def reserve(self, quota: Quota, routers: int, tokens: int, cost: int = 0, max_cost: int = 0) -> ReserveReply:
        """Decides without Redis whether tokens may be reserved; if so, they and their cost are owed to it."""
        reply = ReserveReply("", 0, self.tokens.used() + tokens, WINDOW_S, self.month + tokens, None)
        max_tokens = _share(quota.tokens_per_minute, routers)
        if quota.tokens_per_month and reply.month > quota.tokens_per_month:
            return reply._replace(refused_by="month")
        if max_cost and self.cost + cost > max_cost:
            return reply._replace(refused_by="cost")
        if max_tokens and reply.tokens > max_tokens:
            return reply._replace(refused_by="tokens", wait_s=self.tokens.wait_s(max_tokens, tokens))
        self.owed += tokens
        self.owed_cost += cost
        return reply._replace(cost=self.cost + cost)


def _share(limit: int, routers: int) -> int:
    """This router's share of a limit, at least 1; 0 where there is no limit."""
    return max(1, limit // routers) if limit else 0
