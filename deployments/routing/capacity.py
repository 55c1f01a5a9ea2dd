"""One router's share of the engines of each model."""

import math
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from cluster.settings import LimitSettings, ModelSettings
from deployments.routing.demand import RouterDemand
from deployments.routing.division import RouterPart, part_of
from deployments.routing.fair_queue import FairQueue
from deployments.routing.heartbeat import RouterReports

_Reported = tuple[str, Mapping[str, RouterDemand], int]
"""This router's name, what each router reported, and the second."""


class RouterShare:
    """Sizes a model's queue as replicas and routers come and go: by what the teams at each router ask for, or evenly
    while that is not known."""

    def __init__(self, queue: FairQueue, model: ModelSettings, limits: LimitSettings, routers: int) -> None:
        """routers: how many share the engines, this one included."""
        self._queue = queue
        self._model = model
        self._max_queued = limits.max_queued
        self._routers = routers
        self._replicas = 0
        self._reported: _Reported | None = None
        self._resize()

    def set_replicas(self, replicas: int) -> None:
        """Takes the number of running replicas."""
        self._replicas = replicas
        self._resize()

    def forget_reports(self) -> None:
        """Divides evenly, until there are new reports."""
        self._reported = None
        self._resize()

    def demand(self) -> RouterDemand:
        """What this router reports."""
        return self._queue.demand()

    def divide(self, own: str, demands: Mapping[str, RouterDemand], routers: int, second: int) -> None:
        """Takes what all routers reported. Arguments as `part_of` takes them, but for one router too."""
        self._routers, self._reported = routers, (own, demands, second) if routers > 1 else None
        self._resize()

    def _resize(self) -> None:
        model, routers = self._model, self._routers
        # Where there is none, those that died restart, and those that sleep wake up.
        replicas = self._replicas or max(1, model.replicas)
        places = replicas * model.max_num_seqs
        part = RouterPart.even(math.ceil(places / routers))
        if self._reported is not None:
            own, demands, second = self._reported
            part = part_of(own, places, demands, routers, second)
        # A quarter of a step: prompts handed to an engine go before any later arrival.
        prefill_tokens = math.ceil(replicas * model.assumed_step_tokens / 4 * part.slots / places)
        self._queue.resize(part, math.ceil(replicas * self._max_queued / routers), prefill_tokens)


class RouterShares:
    """This router's shares of all models' engines: what its heartbeat reports, and what the others' reports change."""

    def __init__(self) -> None:
        self._shares: dict[str, RouterShare] = {}

    def add(self, application: str, share: RouterShare) -> None:
        """A model's share. application: of its engines, which names them alike at all routers."""
        self._shares[application] = share

    def report(self) -> bytes:
        """What the teams ask for here; empty while there are no requests."""
        demands = {application: share.demand() for application, share in self._shares.items()}
        asked = any(one.requests for demand in demands.values() for one in demand.teams.values())
        return msgspec.msgpack.encode(demands) if asked else b""

    def take(self, reports: RouterReports | None) -> None:
        """Divides the engines by what the routers report; evenly while Redis is away (None)."""
        if reports is None:
            for share in self._shares.values():
                share.forget_reports()
            return
        demands: dict[str, dict[str, RouterDemand]] = {application: {} for application in self._shares}
        for router, report in reports.reports.items():
            with suppress(msgspec.DecodeError):  # of a router of another version
                for application, demand in _decode(report).items():
                    demands.get(application, {})[router] = demand
        for application, share in self._shares.items():
            share.divide(reports.own, demands[application], reports.routers, reports.second)


_decode = msgspec.msgpack.Decoder(dict[str, RouterDemand]).decode
