"""An engine replica without an engine. Ray and Serve see what they see of Dray's; nothing is computed.

What it reports of its load is read from a file, so that a benchmark changes it while replicas run.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import liveness
from cluster.autoscaling import PACE, QUEUED, REPORTED_AT, TOKENS
from cluster.serve_config import ENGINE, EngineArgs
from deployments.common.messages import ROUTING_STATS, EngineState, PendingWork, ReplicaStats, encode

if TYPE_CHECKING:
    from ray.serve import Application

LOAD_FILE = "DRAY_BENCHMARK_LOAD"
"""Environment variable with the file's path."""
TOKENS_PER_S, TARGET_WAIT_S = 1000.0, 20.0
_BUSY_TOKENS = 5_000


@dataclass(frozen=True, slots=True)
class Load:
    """replicas: as many as the autoscaling policy is to want. routers: whose requests each replica has. busy: whether
    what replicas report changes all the time, as it does while they generate."""

    replicas: int
    routers: int
    busy: bool

    def write(self, file: Path) -> None:
        new = file.with_suffix(".new")
        new.write_text(json.dumps(asdict(self)))
        new.replace(file)

    @classmethod
    def read(cls, file: Path) -> "Load":
        return cls(**json.loads(file.read_text()))


def routing_stats(load: Load, number: int) -> dict[str, bytes]:
    """What the routers' policy gets. number: differs between replicas."""
    stats = ReplicaStats(3_000.0, 65_536, max_num_seqs=16, engine=EngineState(str(number)))
    if load.busy:
        now = int(1000 * time.time())
        work = PendingWork(now % 7_000, now % 3_000, 2)
        pending = {f"{router:08x}": work for router in range(load.routers)}
        state = EngineState(str(number), 2 * load.routers, now % 100 / 10, 0.5)
        stats = ReplicaStats(3_000.0, 65_536, pending, time.time(), state, 16)
    return {ROUTING_STATS: encode(stats)}


def autoscaling_stats(load: Load) -> dict[str, float]:
    """What the autoscaling policy gets: as many tokens queued in a router as keep that number of replicas busy."""
    queued = load.replicas * TOKENS_PER_S * TARGET_WAIT_S
    stats = {TOKENS: 0.0, PACE: TOKENS_PER_S, f"{QUEUED}router": queued, f"{REPORTED_AT}router": time.time()}
    if load.busy:
        for router in range(1, load.routers):
            stats |= {f"{QUEUED}router-{router}": 0.0, f"{REPORTED_AT}router-{router}": time.time()}
    return stats


class EngineStandIn:
    """Has the methods of an engine replica that Serve calls."""

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        """args: EngineArgs as JSON."""
        EngineArgs.model_validate(args)
        self._life = asyncio.create_task(liveness.show_life(Path(os.environ[liveness.FOLDER])))
        self._file = Path(os.environ[LOAD_FILE])

    async def generate(self, payload: bytes) -> AsyncGenerator[bytes, None]:
        """Nobody asks it anything."""
        raise NotImplementedError
        yield payload

    def check_health(self) -> None:
        """Called by Serve."""

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve."""
        return autoscaling_stats(Load.read(self._file))

    def record_routing_stats(self) -> dict[str, bytes]:
        """Called by Serve."""
        return routing_stats(Load.read(self._file), os.getpid())


def engine(args: dict[str, object]) -> "Application":
    """Stands in for `deployments.app:engine`."""
    # Here: Ray reads its environment when it is imported, and the other brings OpenVINO, which no stand-in needs.
    from ray import serve

    from deployments.app import Root

    no_replica = {"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1}
    root = serve.deployment(Root).options(name="root", autoscaling_config=no_replica)
    return root.bind(serve.deployment(EngineStandIn).options(name=ENGINE).bind(args))
