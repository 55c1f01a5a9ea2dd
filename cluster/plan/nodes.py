"""The nodes, cores and memory that a number of replicas needs."""

import math
from dataclasses import dataclass

from cluster.models.folder import private_memory
from cluster.plan.profile import ProfiledEngine
from cluster.settings import ModelSettings
from cluster.units import plural

_SERVICE_MB = 1200
"""Memory for Serve, a router, HAProxy and Ray on a node (benchmarks/memory.py), with some reserve."""


@dataclass(frozen=True, slots=True)
class Node:
    """A kind of machine. spare: cores kept for everything but engines."""

    cores: int
    memory_mb: int
    spare: int = 1


@dataclass(frozen=True, slots=True)
class Capacity:
    """What `replicas` replicas need. on_a_node: replicas on a full node. cores, memory_mb: of all nodes together."""

    replicas: int
    on_a_node: int
    nodes: int
    cores: int
    node_memory_mb: int
    memory_mb: int
    routers: int


@dataclass(frozen=True)
class _Model:
    settings: ModelSettings
    name: str
    fingerprint: str
    weights_bytes: int


def capacity_for(
    engine: ProfiledEngine, replicas: int, node: Node, tokens_per_s: float, router_tokens_per_s: float
) -> Capacity:
    """Fills nodes with replicas, by cores and by memory.

    tokens_per_s: of all replicas at the busiest time. router_tokens_per_s: what one router can pass on. Raises
    ValueError where not even one replica fits on a node.
    """
    settings = ModelSettings(kv_cache_mb=engine.kv_cache_mb)
    replica_mb = math.ceil(private_memory(_Model(settings, engine.model, "", engine.weights_bytes)) / 2**20)
    shared_mb = math.ceil(engine.weights_bytes / 2**20) + _SERVICE_MB
    by_cores = (node.cores - node.spare) // engine.cores
    by_memory = (node.memory_mb - shared_mb) // replica_mb
    on_a_node = min(by_cores, by_memory)
    if on_a_node < 1:
        needed = f"{plural(engine.cores + node.spare, 'core')} and {shared_mb + replica_mb} MiB"
        raise ValueError(
            f"a node of {plural(node.cores, 'core')} and {node.memory_mb} MiB holds no replica: "
            f"that takes at least {needed}"
        )
    nodes = math.ceil(replicas / on_a_node)
    full = min(on_a_node, replicas)
    return Capacity(
        replicas=replicas,
        on_a_node=on_a_node,
        nodes=nodes,
        cores=replicas * engine.cores + nodes * node.spare,
        node_memory_mb=shared_mb + full * replica_mb,
        memory_mb=nodes * shared_mb + replicas * replica_mb,
        routers=max(1, math.ceil(tokens_per_s / router_tokens_per_s)),
    )
