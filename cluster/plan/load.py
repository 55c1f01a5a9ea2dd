"""The load on the simulated service: a recorded trace, or users who send a number of requests an hour."""

import hashlib
import math
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from cluster.bench.lengths import Lengths

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
_REPEATABLE = 10_000
"""The most recent questions of a described load, which may be asked again."""
_HASHES = 1 << 32

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


class _Logged(TraceRequest, frozen=True):
    """A line of `dray bench --log`. Lines with an error or of the server are left out."""

    error: str = ""
    server: int = 0


def read_trace(path: Path) -> list[TraceRequest]:
    """Reads JSON Lines, as `dray bench --log` writes them or with `at`, `prompt` and `output` alone, without failed
    requests.

    Raises LoadError, OSError.
    """
    requests = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            request = msgspec.json.decode(line, type=_Logged)
        except msgspec.DecodeError as error:
            raise LoadError(f"{path}, line {number}: {error}") from None
        if request.error or request.server:
            continue
        if request.prompt < 1 or request.output < 1 or request.at < 0:
            raise LoadError(f"{path}, line {number}: prompt and output must be at least 1 token, and `at` at least 0")
        requests.append(request)
    if not requests:
        raise LoadError(f"{path} contains no requests")
    return sorted(requests, key=lambda request: request.at)


def sample_trace(requests: Iterable[TraceRequest], share: float) -> Iterator[TraceRequest]:
    """A share of a trace: all requests of a question or a conversation are kept, or none."""
    sessions: dict[int | str, str] = {}
    for number, request in enumerate(requests):
        group = f"question {request.question}" if request.question != "" else f"number {number}"
        if request.session != "":
            group = sessions.setdefault(request.session, group)
        hashed = int.from_bytes(hashlib.blake2b(group.encode(), digest_size=4).digest(), "little")
        if hashed < share * _HASHES:
            yield request


def busiest_stretch(requests: Sequence[TraceRequest], seconds: float) -> tuple[float, float]:
    """Start and end of the stretch of this length with the most tokens. requests: sorted by time."""
    most, bounds, first, tokens = 0, (0.0, seconds), 0, 0
    for request in requests:
        tokens += request.prompt + request.output
        while request.at - requests[first].at > seconds:
            tokens -= requests[first].prompt + requests[first].output
            first += 1
        if tokens > most:
            most, bounds = tokens, (requests[first].at, requests[first].at + seconds)
    return bounds


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
