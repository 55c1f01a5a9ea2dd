"""Engine capacity divided evenly between the routers."""

import math

from cluster.settings import LimitSettings, ModelSettings
from deployments.routing.fair_queue import FairQueue


class RouterShare:
    """One router's share of a model's engines: sizes the model's queue as replicas and routers come and go."""

    def __init__(self, queue: FairQueue, model: ModelSettings, limits: LimitSettings, routers: int) -> None:
        """routers: how many share the engines, this one included."""
        self._queue = queue
        self._model = model
        self._max_queued = limits.max_queued
        self._routers = routers
        self._replicas = 0
        self._resize()

    def set_replicas(self, replicas: int) -> None:
        """Takes the number of running replicas."""
        self._replicas = replicas
        self._resize()

    def set_routers(self, routers: int) -> None:
        """Takes the number of routers, this one included."""
        if routers != self._routers:
            self._routers = routers
            self._resize()

    def _resize(self) -> None:
        model, routers = self._model, self._routers
        # Replicas that died restart, and those that sleep wake up.
        replicas = max(self._replicas, model.replicas)
        # A quarter of a step: prompts handed to an engine go before any later arrival.
        prefill_tokens = math.ceil(replicas * model.assumed_step_tokens / 4 / routers)
        queued = math.ceil(replicas * self._max_queued / routers)
        self._queue.resize(math.ceil(replicas * model.max_num_seqs / routers), queued, prefill_tokens)
