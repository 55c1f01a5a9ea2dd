"""Changes a running Dray to other settings or another model without a failed request.

Routers are replaced as a whole, since a router knows one exact set of engines for its lifetime. Where cores allow, the
new engines start beside the old ones. Then new routers take the connections, the old routers stay until their streams
have ended, and at last the old engines go. Where no core is free, the new engines start last, and new requests wait
for them in the new routers.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cluster.launch.serving import applications, apply, failure, one_line
from cluster.serve_config import ROUTER, ROUTERS, Engine, Routers, serve_config

_DRAIN_GRACE_S = 30.0


class RolloutError(Exception):
    """The change failed, and the message says why. restored: whether Serve was set back to what ran before."""

    def __init__(self, message: str, *, restored: bool = True) -> None:
        super().__init__(message)
        self.restored = restored


def roll(old: Routers, new: Routers, free_cores: int, *, beside: bool) -> Iterator[str]:
    """Makes Serve run `new` in place of `old`, step by step; yields what the change waits for.

    free_cores: cores that nobody leases now. beside: whether memory allows new engines beside the old ones.
    Raises RolloutError, after having set Serve back to `old`.
    """
    drain_s = old.settings.limits.request_timeout_s + _DRAIN_GRACE_S
    timeout_s = drain_s + max(engine.model.settings.start_timeout_s for engine in new.engines)
    try:
        yield from _go_over(old, new, free_cores, timeout_s, beside=beside)
    except Exception as error:  # Ray's errors and Serve's have no common type; each is one reason
        reason = one_line(error)
        yield from _go_back(old, reason, timeout_s)
        raise RolloutError(reason) from error


def _go_over(old: Routers, new: Routers, free_cores: int, timeout_s: float, *, beside: bool) -> Iterator[str]:
    running = {engine.application for engine in old.engines}
    added = [engine for engine in new.engines if engine.application not in running]
    staying, first = _make_room(old.engines, new.engines, added, free_cores) if beside else (old.engines, ())
    if first:
        names = ", ".join(engine.model.name for engine in first)
        apply(old, (*staying, *first))
        yield from _until(f"starting {names} beside what runs", _are_running(first), timeout_s)
    apply(new, (*staying, *(first or added)))
    yield from _until("waiting for new routers, and for streams on the old ones to end", _routers_replaced, timeout_s)
    apply(new)
    yield from _until("waiting for old engines to end", _only_running(new), timeout_s)


def _go_back(old: Routers, reason: str, timeout_s: float) -> Iterator[str]:
    try:
        apply(old)
    except Exception as error:
        message = f"{reason}; going back to what ran before fails too: {one_line(error)}"
        raise RolloutError(message, restored=False) from error
    try:
        yield from _until("going back to what ran before", _only_running(old), timeout_s)
    except RolloutError as error:
        raise RolloutError(f"{reason}; what ran before does not start again: {error}") from error


def _make_room(
    old: Sequence[Engine], new: Sequence[Engine], added: Sequence[Engine], free: int
) -> tuple[tuple[Engine, ...], tuple[Engine, ...]]:
    """Finds room for new engines beside the old ones.

    Returns the old engines with the replicas that stay meanwhile, and the new ones with the replicas that start at
    once: none, unless each of them can have a replica.
    """
    wanted = {engine.application: engine for engine in new}
    staying = list(old)
    needed = sum(engine.cores for engine in added)
    # Room comes from replicas beyond the first of engines that go or shrink.
    for index, engine in enumerate(staying):
        min_replicas = wanted[engine.application].replicas if engine.application in wanted else 1
        while free < needed and engine.replicas > max(1, min_replicas):
            engine = engine.with_replicas(engine.replicas - 1)
            free += engine.cores
        staying[index] = engine
    if free < needed:
        return tuple(old), ()
    free -= needed
    first = []
    for engine in added:
        more = min(engine.replicas - 1, free // engine.cores)
        free -= more * engine.cores
        first.append(engine.with_replicas(1 + more))
    return tuple(staying), tuple(first)


def _until(what: str, fact: Callable[[dict[str, Any]], bool], timeout_s: float) -> Iterator[str]:
    """Waits until the fact holds of Serve's applications. Raises RolloutError when one fails, or after the timeout."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    deadline = time.monotonic() + timeout_s
    while True:
        waiting_for = what
        try:
            statuses = applications()
        except (RayError, RayServeException) as error:  # Serve's controller may be restarting
            waiting_for = f"{what}; Serve does not answer: {one_line(error)}"
        else:
            if fact(statuses):
                return
            if reason := next(filter(None, map(failure, statuses.values())), ""):
                raise RolloutError(reason)
        if time.monotonic() > deadline:
            raise RolloutError(f"{waiting_for}: not done within {timeout_s:.0f} s")
        yield waiting_for


def _are_running(engines: Sequence[Engine]) -> Callable[[dict[str, Any]], bool]:
    names = {engine.application for engine in engines}
    return lambda statuses: names <= statuses.keys() and all(statuses[name].status == "RUNNING" for name in names)


def _routers_replaced(statuses: dict[str, Any]) -> bool:
    status = statuses.get(ROUTERS)
    return (
        status is not None
        and status.status == "RUNNING"
        and set(status.deployments[ROUTER].replica_states) == {"RUNNING"}
    )


def _only_running(routers: Routers) -> Callable[[dict[str, Any]], bool]:
    names = {application["name"] for application in serve_config(routers)["applications"]}
    return lambda statuses: statuses.keys() == names and all(status.status == "RUNNING" for status in statuses.values())
