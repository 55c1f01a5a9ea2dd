"""The simulated service: a router with its queue, the answer cache with single flight, and the replicas behind them."""

import itertools
import random
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
from cluster.plan.profile import ProfiledEngine, StepTimes

DRAY = "deployments.routing.simulated:SimulatedPolicy"
"""The policy of the real routers, by its import path: cluster never imports deployments."""
_SCALING_INTERVAL_S = 5.0
_SEED = 0


class Policy(Protocol):
    """Chooses a replica for each request. Replicas are given by their index."""

    def choose(self, request: TraceRequest, replicas: Sequence[SimulatedReplica], up: Sequence[int]) -> int:
        """The index of the replica for this request, one of those that are up."""

    def sent(self, number: int, request: TraceRequest, replica: int) -> None:
        """Called when the request, whose number this is, goes to the replica just chosen."""

    def begun(self, number: int, replica: int) -> None:
        """Called when its first token has been generated."""

    def ended(self, number: int, replica: int) -> None:
        """Called when its last token has been generated."""


class LeastWaiting:
    """Chooses the replica with the fewest tokens left to compute, this request included."""

    def choose(self, request: TraceRequest, replicas: Sequence[SimulatedReplica], up: Sequence[int]) -> int:
        """The first of the replicas with the fewest tokens."""
        return min(
            up, key=lambda index: replicas[index].pending_tokens - replicas[index].prefixes.cached_tokens(request)
        )

    def sent(self, number: int, request: TraceRequest, replica: int) -> None:
        """Does nothing: `choose` reads the state of the replicas."""

    def begun(self, number: int, replica: int) -> None:
        """Does nothing."""

    def ended(self, number: int, replica: int) -> None:
        """Does nothing."""


def policy(name: str, replicas: int, engine: ProfiledEngine, speed: float, clock: Callable[[], float]) -> Policy:
    """The policy of this name: `dray` or `least-waiting`. speed: prompt tokens a second of a replica. clock: the
    simulated time."""
    if name != "dray":
        return LeastWaiting()
    module, _, attribute = DRAY.partition(":")
    chosen: Policy = getattr(import_module(module), attribute)(replicas, engine.kv_tokens, speed, clock)
    return chosen


@dataclass(frozen=True, slots=True)
class ServiceModel:
    """Properties of the service. waiting: requests that may wait for each replica in addition to those that it runs.
    hit_s: time of a cached answer. overhead_s: of router and network, before the first token. step_overhead_s: of each
    step in a running service, in addition to the engine's own time. ttl_s: how long answers are cached; 0: no cache."""

    policy: str = "dray"
    max_queued: int = 256
    hit_s: float = 0.004
    overhead_s: float = 0.01
    step_overhead_s: float = 0.0
    ttl_s: float = 86_400.0


@dataclass(frozen=True, slots=True)
class Scaling:
    """Autoscaling by the policy that Serve calls (cluster.autoscaling), up to the replicas that the service has.

    target_wait_s, downscale_delay_s: as in the settings. start_s: seconds until a new replica takes requests.
    """

    min_replicas: int
    target_wait_s: float = 20.0
    downscale_delay_s: float = 300.0
    start_s: float = 20.0


@dataclass(slots=True)
class Measurements:
    """Measurements of the requests that arrived in a stretch of time. tokens: generated for them, without hits."""

    ttft: Distribution = field(default_factory=Distribution)
    tpot: Distribution = field(default_factory=Distribution)
    requests: int = 0
    hits: int = 0
    joined: int = 0
    refused: int = 0
    tokens: int = 0
    up: float = 0.0
    """Replicas that were up at its end; 0 without autoscaling."""


class Service:
    """The whole service."""

    def __init__(
        self,
        world: simpy.Environment,
        engine: ProfiledEngine,
        times: StepTimes,
        replicas: int,
        terms: ServiceModel,
        window: Callable[[float], Measurements],
        scaling: Scaling | None = None,
    ) -> None:
        """replicas: their number; with scaling, the maximum. window: the one for requests that arrive at this time."""
        self._world, self._engine, self._terms, self._window = world, engine, terms, window
        self.replicas = [SimulatedReplica(world, engine, times, terms.step_overhead_s) for _ in range(replicas)]
        size = engine.max_num_batched_tokens
        self._speed = size / times.step(0, 0, size, size * size // 2)
        self._policy = policy(terms.policy, replicas, engine, self._speed, lambda: world.now)
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
        """Cached answers."""
        return len(self._stored)

    def send_all(self, requests: Iterable[TraceRequest]) -> Generator[simpy.Event, Any, None]:
        """Sends all requests, each at its time."""
        for request in requests:
            yield self._world.timeout(max(0.0, request.at - self._world.now))
            self._world.process(self._answer(request))
        self._finished = True

    def _answer(self, request: TraceRequest) -> Generator[simpy.Event, Any, None]:
        arrived, seen = self._world.now, self._window(self._world.now)
        seen.requests += 1
        question = request.question if self._terms.ttl_s else ""
        if self._stored.get(question, -1.0) > arrived:
            seen.hits += 1
            seen.ttft.add(self._terms.hit_s)
            return
        if question != "" and (leader := self._flights.get(question)) is not None:
            seen.joined += 1
            if not leader.begun.triggered:
                yield leader.begun
            # The tokens so far arrive at once, the others as they are generated.
            self._count(seen, request, arrived, self._world.now, (yield from _last(leader)))
            return
        if self._running >= self._slots and len(self._waiting) >= len(self._up) * self._terms.max_queued:
            seen.refused += 1
            return
        work = SimulatedSequence(request, self._world.event(), self._world.event())
        if question != "":
            self._flights[question] = work
        yield from self._acquire_slot(request)
        number = next(self._numbers)
        index = self._policy.choose(request, self.replicas, self._up)
        self._policy.sent(number, request, index)
        self.replicas[index].add(work)
        yield work.begun
        self._policy.begun(number, index)
        yield work.done
        self._policy.ended(number, index)
        self._release_slot()
        if question != "":
            del self._flights[question]
            self._store(question)
        seen.tokens += work.generated
        self._count(seen, request, arrived, work.first, work.last)

    @property
    def _slots(self) -> int:
        return len(self._up) * self._engine.max_num_seqs

    def _acquire_slot(self, request: TraceRequest) -> Generator[simpy.Event, Any, None]:
        if self._running < self._slots:
            self._running += 1
            return
        granted = self._world.event()
        self._waiting.append((granted, request))
        yield granted

    def _release_slot(self) -> None:
        self._running -= 1
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._running < self._slots:
            self._running += 1
            self._waiting.popleft()[0].succeed()

    def _scale(self, scaling: Scaling) -> Generator[simpy.Event, Any, None]:
        """Applies the autoscaling policy every few seconds: up at once, down after the delay."""
        target, low_since = len(self._up), self._world.now
        while not (self._finished and not self._running and not self._waiting):
            yield self._world.timeout(_SCALING_INTERVAL_S)
            now = self._world.now
            queued = sum(request.prompt + request.output for _, request in self._waiting)
            tokens = queued + sum(replica.pending_tokens for replica in self.replicas)
            sample = LoadSample(tokens, self._tokens_per_s(), len(self._up))
            desired = desired_replicas(sample, target, scaling.target_wait_s)
            desired = min(max(desired, scaling.min_replicas), len(self.replicas))
            if desired >= target:
                low_since = now
            if desired > target:
                for _ in range(desired - target):
                    self._world.process(self._start(scaling.start_s))
                target = desired
            elif desired < target and now - low_since >= scaling.downscale_delay_s and len(self._up) == target:
                del self._up[desired:]
                target, low_since = desired, now
            self._window(now).up = float(len(self._up))

    def _start(self, seconds: float) -> Generator[simpy.Event, Any, None]:
        yield self._world.timeout(seconds)
        self._up.append(len(self._up))
        self._grant()

    def _tokens_per_s(self) -> float:
        """Tokens a second that a well-loaded replica computes, averaged over all; until measured, its prompt speed."""
        loaded_s = sum(replica.loaded_s for replica in self.replicas)
        if loaded_s <= _SCALING_INTERVAL_S:
            return self._speed
        return sum(replica.loaded_tokens for replica in self.replicas) / loaded_s

    def _store(self, question: int | str) -> None:
        now = self._world.now
        self._stored[question] = now + self._terms.ttl_s
        self._stored.move_to_end(question)
        while self._stored and next(iter(self._stored.values())) <= now:
            self._stored.popitem(last=False)

    def _count(self, seen: Measurements, request: TraceRequest, arrived: float, first: float, last: float) -> None:
        seen.ttft.add(first - arrived + self._terms.overhead_s)
        if request.output > 1:
            seen.tpot.add((last - first) / (request.output - 1))


def _last(leader: SimulatedSequence) -> Generator[simpy.Event, Any, float]:
    if not leader.done.triggered:
        yield leader.done
    return leader.last


def simulate(
    requests: Iterable[TraceRequest],
    engine: ProfiledEngine,
    times: StepTimes,
    replicas: int,
    terms: ServiceModel,
    window: Callable[[float], Measurements],
    scaling: Scaling | None = None,
) -> Service:
    """Sends all requests to a service, and runs until all are answered. Arguments as Service takes them.

    The same requests give the same times, although routers draw some of the replicas that they compare.
    """
    state = random.getstate()
    random.seed(_SEED)
    try:
        world = simpy.Environment()
        service = Service(world, engine, times, replicas, terms, window, scaling)
        world.process(service.send_all(requests))
        world.run()
    finally:
        random.setstate(state)
    return service
