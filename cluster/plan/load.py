"""What is asked of the modelled service: a trace of what was asked once, or users who ask so much an hour."""

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
_REMEMBERED = 10_000
"""Questions of a described load that may be asked again: the last ones."""
_SHARES = 1 << 32

SHAPES: dict[str, tuple[float, ...]] = {
    "flat": (1.0,) * 24,
    "office": (
        *(0.05, 0.03, 0.02, 0.02, 0.03, 0.1, 0.3, 0.8, 1.8, 2.6, 2.8, 2.4),
        *(1.4, 2.0, 2.7, 2.6, 2.2, 1.5, 0.9, 0.6, 0.4, 0.3, 0.2, 0.1),
    ),
}
"""Load in each hour of a day, of which only the shape matters."""


class LoadError(Exception):
    """The load cannot be read; the message says where and why."""


class TraceRequest(msgspec.Struct, frozen=True):
    """A request of a trace. at: seconds. question: equal ones have the same answer; "" is like no other. session: of a
    conversation, whose next prompt begins with all that was said. prefix: a shared system prompt of `prefix_tokens`,
    which are part of `prompt`."""

    at: float
    prompt: int
    output: int
    question: int | str = ""
    session: int | str = ""
    prefix: int | str = ""
    prefix_tokens: int = 0


class _Logged(TraceRequest, frozen=True):
    """A line that `dray bench --log` wrote."""

    error: str = ""
    server: int = 0


def read_trace(path: Path) -> list[TraceRequest]:
    """JSON Lines, as `dray bench --log` writes them or with `at`, `prompt` and `output` alone; what failed is left out.

    Raises LoadError, OSError.
    """
    requests = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            one = msgspec.json.decode(line, type=_Logged)
        except msgspec.DecodeError as error:
            raise LoadError(f"{path}, line {number}: {error}") from None
        if one.error or one.server:
            continue
        if one.prompt < 1 or one.output < 1 or one.at < 0:
            raise LoadError(f"{path}, line {number}: prompt and output are at least 1 token, and time begins at 0")
        requests.append(one)
    if not requests:
        raise LoadError(f"{path} holds no requests")
    return sorted(requests, key=lambda one: one.at)


def thinned(requests: Iterable[TraceRequest], share: float) -> Iterator[TraceRequest]:
    """So large a share of a trace: questions and conversations are kept whole or not at all."""
    begun: dict[int | str, str] = {}
    for number, one in enumerate(requests):
        kept = f"question {one.question}" if one.question != "" else f"number {number}"
        if one.session != "":
            kept = begun.setdefault(one.session, kept)
        place = int.from_bytes(hashlib.blake2b(kept.encode(), digest_size=4).digest(), "little")
        if place < share * _SHARES:
            yield one


def busiest(requests: Sequence[TraceRequest], seconds: float) -> tuple[float, float]:
    """Where the most tokens are asked for within such a time: its bounds."""
    best, bounds, begin, tokens = 0, (0.0, seconds), 0, 0
    for one in requests:
        tokens += one.prompt + one.output
        while one.at - requests[begin].at > seconds:
            tokens -= requests[begin].prompt + requests[begin].output
            begin += 1
        if tokens > best:
            best, bounds = tokens, (requests[begin].at, requests[begin].at + seconds)
    return bounds


@dataclass(frozen=True)
class Described:
    """Users and their questions. an_hour: of each user, on the average of the day. peak: load of the busiest hour over
    that average. repeated: share that asks one of the last questions again. prefix: tokens of the system prompt that
    all share; `prompt` comes on top of it."""

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
        shape = [one / mean for one in self.shape]
        highest = max(shape)
        if highest > 1:
            shape = [max(0.0, 1 + (one - 1) * (self.peak - 1) / (highest - 1)) for one in shape]
            raised = sum(shape) / len(shape)
            shape = [one / raised for one in shape]
        return tuple(self.users * self.an_hour / HOUR_S * one for one in shape)

    def rate(self, at: float) -> float:
        """Requests a second at this second of the day; straight lines between the middles of hours."""
        place = at / HOUR_S - 0.5
        hours, low = self.hours, math.floor(place)
        before, after = hours[low % len(hours)], hours[(low + 1) % len(hours)]
        return before + (after - before) * (place - low)

    def requests(self, begin: float, end: float, share: float, seed: int) -> Iterator[TraceRequest]:
        """Those of so large a share of the users, between two seconds of the day, in a Poisson stream."""
        chance = random.Random(seed)
        last: deque[TraceRequest] = deque(maxlen=_REMEMBERED)
        highest, at, number = max(self.hours) * share, begin, 0
        if highest <= 0:
            return
        while (at := at + chance.expovariate(highest)) < end:
            if chance.random() * highest > self.rate(at) * share:
                continue
            if last and chance.random() < self.repeated:
                yield msgspec.structs.replace(chance.choice(last), at=at)
                continue
            number += 1
            prompt, output = self.prompt.draw(chance) + self.prefix, self.output.draw(chance)
            one = TraceRequest(at, prompt, output, number, "", "all" if self.prefix else "", self.prefix)
            last.append(one)
            yield one
