"""From what runs to what should run, without a failed request: a deployment of changed settings or another model.

Requests never fail on the way because routers go over as a whole: a router knows one set of exact engines from its
start to its end. New engines start beside the old ones where cores allow; then new routers take the connections, and
the old ones stay until their streams have ended; then the old engines go. Where no core is free, the new engines start
last, and what is asked meanwhile waits for them in the new routers.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cluster.launch.serving import applications, apply, failure
from cluster.serve_config import ROUTER, ROUTERS, Engine, Routers, serve_config

_DRAIN_GRACE_S = 30.0


class RolloutError(Exception):
    """What was wanted did not come up; what ran before runs again. The message says why."""


def roll(old: Routers, new: Routers, free_cores: int, *, beside: bool) -> Iterator[str]:
    """Makes Serve run `new` in place of `old`, step by step; yields what it is waiting for, now and then.

    free_cores: cores that nobody leases now. beside: whether memory allows new engines beside the old ones.
    Raises RolloutError.
    """
    running = {engine.application: engine for engine in old.engines}
    added = [engine for engine in new.engines if engine.application not in running]
    staying, first = _make_room(old.engines, new.engines, added, free_cores) if beside else (old.engines, ())
    patience = max(engine.model.settings.start_timeout_s for engine in new.engines)
    drain = old.settings.limits.request_timeout_s + _DRAIN_GRACE_S
    try:
        if first:
            names = ", ".join(engine.model.name for engine in first)
            apply(old, (*staying, *first))
            yield from _until(f"starting {names} beside what runs", _running(first), patience + drain)
        apply(new, (*staying, *(first or added)))
        yield from _until("new routers take over; streams end on the old ones", _routers_replaced, patience + drain)
        apply(new)
        yield from _until("old engines end", _only(new), patience + drain)
    except RolloutError:
        apply(old)
        yield from _until("going back to what ran before", _only(old), patience + drain)
        raise


def _make_room(
    old: Sequence[Engine], new: Sequence[Engine], added: Sequence[Engine], free: int
) -> tuple[tuple[Engine, ...], tuple[Engine, ...]]:
    """What of the old engines stays for the change, and how many replicas of each new one start beside it; of the new
    ones none, where not each of them can have a replica."""
    wanted = {engine.application: engine for engine in new}
    staying = list(old)
    needed = sum(engine.cores for engine in added)
    # Replicas beyond the first of engines that go, or that are to have fewer, make room.
    for place, engine in enumerate(staying):
        least = wanted[engine.application].replicas if engine.application in wanted else 1
        while free < needed and engine.replicas > max(1, least):
            engine = engine.with_replicas(engine.replicas - 1)
            free += engine.cores
        staying[place] = engine
    if free < needed:
        return tuple(old), ()
    free -= needed
    first = []
    for engine in added:
        more = min(engine.replicas - 1, free // engine.cores)
        free -= more * engine.cores
        first.append(engine.with_replicas(1 + more))
    return tuple(staying), tuple(first)


def _until(what: str, fact: Callable[[dict[str, Any]], bool], patience_s: float) -> Iterator[str]:
    deadline = time.monotonic() + patience_s
    while True:
        seen = applications()
        if fact(seen):
            return
        if said := next(filter(None, map(failure, seen.values())), ""):
            raise RolloutError(said)
        if time.monotonic() > deadline:
            raise RolloutError(f"{what}: not done within {patience_s:.0f} s")
        yield what


def _running(engines: Sequence[Engine]) -> Callable[[dict[str, Any]], bool]:
    names = {engine.application for engine in engines}
    return lambda seen: names <= seen.keys() and all(seen[name].status == "RUNNING" for name in names)


def _routers_replaced(seen: dict[str, Any]) -> bool:
    status = seen[ROUTERS]
    return status.status == "RUNNING" and set(status.deployments[ROUTER].replica_states) == {"RUNNING"}


def _only(routers: Routers) -> Callable[[dict[str, Any]], bool]:
    names = {application["name"] for application in serve_config(routers)["applications"]}
    return lambda seen: seen.keys() == names and all(one.status == "RUNNING" for one in seen.values())
