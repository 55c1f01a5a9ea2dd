"""The load on the simulated service: its requests, and users who send a number of them an hour."""

import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import msgspec

from cluster.bench.lengths import Lengths

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
_REPEATABLE = 10_000
"""The most recent questions of a described load, which may be asked again."""

SHAPES: dict[str, tuple[float, ...]] = {
    "flat": (1.0,) * 24,
    "office": (
        *(0.05, 0.03, 0.02, 0.02, 0.03, 0.1, 0.3, 0.8, 1.8, 2.6, 2.8, 2.4),
        *(1.4, 2.0, 2.7, 2.6, 2.2, 1.5, 0.9, 0.6, 0.4, 0.3, 0.2, 0.1),
    ),
}
"""Load in each hour of a day; only the ratios count."""


class LoadError(Exception):
    """The trace cannot be read; the message says where and why."""


class TraceRequest(msgspec.Struct, frozen=True):
    """A request of a trace. at: seconds. prompt, output: tokens. question: equal ones have the same answer; "" equals
    no other. session: its conversation, whose next prompt starts with everything before. prefix: its shared system
    prompt, of `prefix_tokens`, which are part of `prompt`."""

    at: float
    prompt: int
    output: int
    question: int | str = ""
    session: int | str = ""
    prefix: int | str = ""
    prefix_tokens: int = 0


@dataclass(frozen=True)
class UserLoad:
    """Users and their questions. an_hour: requests of each user, averaged over the day. peak: load of the busiest hour
    over that average. repeated: share of requests that ask a recent question again. prefix: tokens of the system prompt
    that all share, in addition to `prompt`."""

    users: float
    an_hour: float
    prompt: Lengths
    output: Lengths
    repeated: float = 0.0
    peak: float = 1.0
    shape: tuple[float, ...] = SHAPES["flat"]
    prefix: int = 0

    @cached_property
    def hours(self) -> tuple[float, ...]:
        """Requests a second in each hour of the day."""
        mean = sum(self.shape) / len(self.shape)
        shape = [load / mean for load in self.shape]
        highest = max(shape)
        if highest > 1:
            stretched = [max(0.0, 1 + (load - 1) * (self.peak - 1) / (highest - 1)) for load in shape]
            mean = sum(stretched) / len(stretched)
            shape = [load / mean for load in stretched]
        return tuple(self.users * self.an_hour / HOUR_S * load for load in shape)

    def rate(self, at: float) -> float:
        """Requests a second at this second of the day, interpolated between the middles of the hours."""
        hour = at / HOUR_S - 0.5
        hours, low = self.hours, math.floor(hour)
        before, after = hours[low % len(hours)], hours[(low + 1) % len(hours)]
        return before + (after - before) * (hour - low)

    def requests(self, begin: float, end: float, share: float, seed: int) -> Iterator[TraceRequest]:
        """The requests of a share of the users between two seconds of the day: a Poisson process."""
        chance = random.Random(seed)
        recent: deque[TraceRequest] = deque(maxlen=_REPEATABLE)
        highest, at, number = max(self.hours) * share, begin, 0
        if highest <= 0:
            return
        while (at := at + chance.expovariate(highest)) < end:
            if chance.random() * highest > self.rate(at) * share:
                continue
            if recent and chance.random() < self.repeated:
                yield msgspec.structs.replace(chance.choice(recent), at=at)
                continue
            number += 1
            prompt, output = self.prompt.draw(chance) + self.prefix, self.output.draw(chance)
            request = TraceRequest(at, prompt, output, number, "", "all" if self.prefix else "", self.prefix)
            recent.append(request)
            yield request
