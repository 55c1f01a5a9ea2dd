"""How often the parts of the control plane ask each other, by the size of the service.

Serve's controller is one process: it asks every replica and every node's HAProxy how it is, hears from every replica,
and tells every router about all replicas. Every HAProxy asks every router. With fixed intervals these grow with the
number of replicas, the news for routers with replicas times routers. So a large service has longer intervals
(docs/concepts/scaling.md).
"""

import math
from dataclasses import dataclass

from cluster.settings import Settings

_STATS_PER_S = 400
"""Questions of the controller to replicas, what they have to do."""
_CHECKS_PER_S = 200
"""Questions of the controller to HAProxies, and of HAProxies to one router."""
_REPORTS_PER_S = 100
"""Reports of replicas to the controller for its autoscaling policy."""
_NEWS_PER_S = 14_000
"""Replicas times routers in the controller's news for routers."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """In seconds.

    control_loop: between two rounds of the controller, in each of which routers may get news. routing_stats: between
    two questions to a replica, how much it has to do. scaling_reports: between two of a replica for the autoscaling
    policy. proxy_checks: between two of a node's HAProxy by the controller. router_checks: between two of a router by
    an HAProxy.
    """

    control_loop: float
    routing_stats: float
    scaling_reports: float
    proxy_checks: float
    router_checks: float

    @classmethod
    def of(cls, settings: Settings) -> "Intervals":
        """Those of the largest service that the settings allow. On Kubernetes each replica has a node of its own."""
        replicas = sum(max(model.replicas, model.max_replicas) for model in settings.served)
        routers = settings.router.replica_limit
        return cls(
            control_loop=_rounded(0.5, replicas * routers / _NEWS_PER_S),
            routing_stats=_rounded(1, replicas / _STATS_PER_S),
            scaling_reports=_rounded(1, replicas / _REPORTS_PER_S),
            proxy_checks=_rounded(1, (replicas + routers) / _CHECKS_PER_S),
            router_checks=_rounded(1, (replicas + routers) / _CHECKS_PER_S),
        )


def _rounded(shortest: float, needed: float) -> float:
    """In half seconds, so that a few replicas more change no interval: in a pod that would replace the RayCluster."""
    return max(shortest, math.ceil(2 * needed) / 2)
