"""The service of the model: routers with their queue, the answer cache with its flights, and replicas behind them."""

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import simpy

from cluster.autoscaling import LoadSample, desired_replicas
from cluster.bench.results import Distribution
from cluster.plan.engine import SimulatedReplica, SimulatedSequence
from cluster.plan.load import TraceRequest
from cluster.plan.profile import Header, StepTimes

DRAY = "deployments.routing.simulated:SimulatedPolicy"
"""The policy of the real routers, by its import path: it lives where they do."""


_LOOK_S = 5.0


class Policy(Protocol):
    """Chooses a replica for each request."""

    def choose(self, request: TraceRequest, replicas: Sequence[SimulatedReplica], up: Sequence[int]) -> int:
        """The place of one of those that are up."""

    def sent(self, number: int, request: TraceRequest, replica: int) -> None:
        """Told of each choice; number: of the request."""

    def begun(self, number: int, replica: int) -> None:
        """Told when its first token has come."""

    def ended(self, number: int, replica: int) -> None:
        """Told when it is over."""


class LeastWaiting:
    """To where the fewest tokens are before it is done."""

    def choose(self, request: TraceRequest, replicas: Sequence[SimulatedReplica], up: Sequence[int]) -> int:
        """The first of those that have the least to do."""
        return min(up, key=lambda place: replicas[place].waiting - replicas[place].prefixes.found(request))

    def sent(self, number: int, request: TraceRequest, replica: int) -> None:
        """Nothing: it looks at the replicas themselves."""

    def begun(self, number: int, replica: int) -> None:
        """Nothing."""

    def ended(self, number: int, replica: int) -> None:
        """Nothing."""


def policy(name: str, replicas: int, engine: Header, speed: float) -> Policy:
    """By its name: `dray` or `least-waiting`. speed: prompt tokens a second of a replica."""
    if name != "dray":
        return LeastWaiting()
    module, _, attribute = DRAY.partition(":")
    made: Policy = getattr(import_module(module), attribute)(replicas, engine.kv_tokens, speed)
    return made


@dataclass(frozen=True, slots=True)
class ServiceModel:
    """What the service is like. waiting: requests that may wait for each replica beyond those that it runs. hit_s: a
    stored answer's time. overhead_s: of router and network, before the first token. step_overhead_s: of each step in a
    running service, beyond the engine's own. ttl_s: how long an answer is kept; 0: there is no cache."""

    policy: str = "dray"
    waiting: int = 256
    hit_s: float = 0.004
    overhead_s: float = 0.01
    step_overhead_s: float = 0.0
    ttl_s: float = 86_400.0


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many replicas are up: between two bounds, by the policy that Serve calls (cluster.autoscaling).

    target_wait_s, downscale_delay_s: as the settings have them. start_s: until a new one answers.
    """

    min_replicas: int
    target_wait_s: float = 20.0
    downscale_delay_s: float = 300.0
    start_s: float = 20.0


@dataclass(slots=True)
class Window:
    """What was seen of the requests that came in a stretch of time."""

    ttft: Distribution = field(default_factory=Distribution)
    tpot: Distribution = field(default_factory=Distribution)
    requests: int = 0
    hits: int = 0
    joined: int = 0
    refused: int = 0
    tokens: int = 0
    up: float = 0.0
    """Replicas that were up, at its end; 0 where their number never changes."""


class Service:
    """Replicas and what is before them."""

    def __init__(
        self,
        world: simpy.Environment,
        engine: Header,
        times: StepTimes,
        replicas: int,
        terms: ServiceModel,
        window: Callable[[float], Window],
        scaling: Scaling | None = None,
    ) -> None:
        """replicas: with scaling, the most there can be. window: where a request that comes at this time is counted."""
        self._world, self._engine, self._terms, self._window = world, engine, terms, window
        self.replicas = [SimulatedReplica(world, engine, times, terms.step_overhead_s) for _ in range(replicas)]
        size = engine.max_num_batched_tokens
        self._speed = size / times.step(0, 0, size, size * size // 2)
        self._policy = policy(terms.policy, replicas, engine, self._speed)
        self._up = list(range(replicas))
        self._running = 0
        if scaling is not None:
            self._up = list(range(min(scaling.min_replicas, replicas)))
            world.process(self._scale(scaling))
        self._waiting: deque[tuple[simpy.Event, TraceRequest]] = deque()
        self._finished = False
        self._flights: dict[int | str, SimulatedSequence] = {}
        self._stored: OrderedDict[int | str, float] = OrderedDict()
        self._numbers = itertools.count()

    @property
    def stored(self) -> int:
        """Answers in the cache."""
        return len(self._stored)

    def ask(self, requests: Iterable[TraceRequest]) -> Generator[simpy.Event, Any, None]:
        """Asks them all, each at its time."""
        for one in requests:
            yield self._world.timeout(max(0.0, one.at - self._world.now))
            self._world.process(self._one(one))
        self._finished = True

    def _one(self, request: TraceRequest) -> Generator[simpy.Event, Any, None]:
        came, seen = self._world.now, self._window(self._world.now)
        seen.requests += 1
        question = request.question if self._terms.ttl_s else ""
        if self._stored.get(question, -1.0) > came:
            seen.hits += 1
            seen.ttft.add(self._terms.hit_s)
            return
        if question != "" and (leader := self._flights.get(question)) is not None:
            seen.joined += 1
            if not leader.begun.triggered:
                yield leader.begun
            # What has been made comes at once, the rest as it is made.
            self._count(seen, request, came, self._world.now, (yield from _last(leader)))
            return
        if self._running >= self._places and len(self._waiting) >= len(self._up) * self._terms.waiting:
            seen.refused += 1
            return
        work = SimulatedSequence(request, self._world.event(), self._world.event())
        if question != "":
            self._flights[question] = work
        yield from self._turn(request)
        number = next(self._numbers)
        place = self._policy.choose(request, self.replicas, self._up)
        self._policy.sent(number, request, place)
        self.replicas[place].add(work)
        yield work.begun
        self._policy.begun(number, place)
        yield work.done
        self._policy.ended(number, place)
        self._given_back()
        if question != "":
            del self._flights[question]
            self._keep(question)
        seen.tokens += work.made
        self._count(seen, request, came, work.first, work.last)

    @property
    def _places(self) -> int:
        return len(self._up) * self._engine.max_num_seqs

    def _turn(self, request: TraceRequest) -> Generator[simpy.Event, Any, None]:
        if self._running < self._places:
            self._running += 1
            return
        turn = self._world.event()
        self._waiting.append((turn, request))
        yield turn

    def _given_back(self) -> None:
        self._running -= 1
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._running < self._places:
            self._running += 1
            self._waiting.popleft()[0].succeed()

    def _scale(self, scaling: Scaling) -> Generator[simpy.Event, Any, None]:
        """Looks every few seconds how many are wanted; more begin to start at once, fewer go after a while."""
        wanted, fewer_since = len(self._up), self._world.now
        while not (self._finished and not self._running and not self._waiting):
            yield self._world.timeout(_LOOK_S)
            now = self._world.now
            queued = sum(one.prompt + one.output for _, one in self._waiting)
            tokens = queued + sum(one.waiting for one in self.replicas)
            pace = self._pace()
            by_policy = desired_replicas(LoadSample(tokens, pace, len(self._up)), wanted, scaling.target_wait_s)
            by_policy = min(max(by_policy, scaling.min_replicas), len(self.replicas))
            if by_policy >= wanted:
                fewer_since = now
            if by_policy > wanted:
                for _ in range(by_policy - wanted):
                    self._world.process(self._start(scaling.start_s))
                wanted = by_policy
            elif by_policy < wanted and now - fewer_since >= scaling.downscale_delay_s and len(self._up) == wanted:
                del self._up[by_policy:]
                wanted, fewer_since = by_policy, now
            self._window(now).up = float(len(self._up))

    def _start(self, seconds: float) -> Generator[simpy.Event, Any, None]:
        yield self._world.timeout(seconds)
        self._up.append(len(self._up))
        self._grant()

    def _pace(self) -> float:
        """Tokens a second that a replica computes while it is well loaded, of all that they have computed so."""
        busy = sum(one.loaded_s for one in self.replicas)
        return sum(one.loaded_tokens for one in self.replicas) / busy if busy > _LOOK_S else self._speed

    def _keep(self, question: int | str) -> None:
        now = self._world.now
        self._stored[question] = now + self._terms.ttl_s
        self._stored.move_to_end(question)
        while self._stored and next(iter(self._stored.values())) <= now:
            self._stored.popitem(last=False)

    def _count(self, seen: Window, request: TraceRequest, came: float, first: float, last: float) -> None:
        seen.ttft.add(first - came + self._terms.overhead_s)
        if request.output > 1:
            seen.tpot.add((last - first) / (request.output - 1))


def _last(leader: SimulatedSequence) -> Generator[simpy.Event, Any, float]:
    if not leader.done.triggered:
        yield leader.done
    return leader.last


def simulate(
    requests: Iterable[TraceRequest],
    engine: Header,
    times: StepTimes,
    replicas: int,
    terms: ServiceModel,
    window: Callable[[float], Window],
    scaling: Scaling | None = None,
) -> Service:
    """Asks them all, and runs until all are answered."""
    world = simpy.Environment()
    service = Service(world, engine, times, replicas, terms, window, scaling)
    world.process(service.ask(requests))
    world.run()
    return service
