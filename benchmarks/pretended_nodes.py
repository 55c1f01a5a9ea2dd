"""A Dray on pretended nodes: Ray's nodes on this machine, with as many cores as replicas are to fit.

Ray, Serve and Dray's routers are real, and the config is Dray's own. Only the engine replicas are stand-ins, about
100 MiB each.
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

from benchmarks.engine_stand_in import LOAD_FILE, TARGET_WAIT_S, Load
from cluster import liveness
from cluster.kubernetes.pods import routers_of
from cluster.launch import ray_node, ray_parts
from cluster.launch.environment import OBJECT_STORE_BYTES
from cluster.launch.import_guard import leave_out_pandas
from cluster.launch.preflight import port_block
from cluster.ports import free_port
from cluster.private_files import private_folder
from cluster.redis_server import OwnRedis
from cluster.serve_config import ENGINE, Routers
from cluster.settings import CacheSettings, ModelSettings, RouterSettings, Settings, TeamSettings

_POLL_S = 0.25
_TIMEOUT_S = 900.0


class ControlPlane:
    """A Dray on pretended nodes. Its replicas are added, lost and replaced."""

    def __init__(self, settings: Settings, load_file: Path, per_node: int) -> None:
        from ray.cluster_utils import Cluster

        self._cluster, self._file, self._per_node = Cluster(), load_file, per_node
        self.routers = routers_of(settings)
        self.size = 0
        self._add_node(0)

    @property
    def nodes(self) -> int:
        return len(self._cluster.worker_nodes)

    def _add_node(self, cores: int) -> None:
        """A node with so many cores. The first one is the head, which has none."""
        # Ray would write the head's address to where every program of this machine looks for one.
        with patch("ray._private.utils.write_ray_address"):
            self._cluster.add_node(
                num_cpus=cores,
                object_store_memory=OBJECT_STORE_BYTES,
                temp_dir=str(self.routers.settings.state_dir / "ray"),
                **({} if cores else {"include_dashboard": False}),
            )

    def start(self, size: int) -> None:
        """Connects to the head, and starts Serve with its routers and as many replicas."""
        import ray
        from ray import serve

        from cluster.launch import serving

        ray.init(address=self._cluster.address, namespace="dray", log_to_driver=False, logging_level=logging.ERROR)
        self.report_load(size, busy=False)
        self.routers = self._with_replicas(self.routers, size)
        # All nodes have one address here, so only one HAProxy can listen.
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": self.routers.settings.port})
        serving.start(self.routers)
        self.wait_for(size)

    def prepare(self, size: int) -> None:
        """Adds nodes for as many replicas, and one more."""
        while self.nodes * self._per_node < size + self._per_node:
            self._add_node(self._per_node)

    def grow(self, size: int) -> float:
        """Reports work for more replicas, waits until they run, and returns the seconds until the first one starts."""
        started = time.monotonic()
        self.report_load(size, busy=False)
        self._until(lambda states: sum(states.values()) > self.size)
        noticed = time.monotonic() - started
        self.wait_for(size)
        return noticed

    def report_load(self, size: int, *, busy: bool) -> None:
        """What replicas report from now on: so much work that the policy wants as many of them."""
        Load(size, self.routers.settings.router.replica_minimum, busy).write(self._file)

    def wait_for(self, size: int) -> None:
        """Waits until as many replicas run, no others are there, and the routers run too."""
        self._until(lambda states: states == {"RUNNING": size}, healthy=True)
        self.size = size

    def lose_node(self) -> float:
        """Kills a node that has replicas, waits until as many replicas run as before, and returns the seconds until
        Serve noticed."""
        started = time.monotonic()
        node = max(self._cluster.worker_nodes, key=lambda node: len(psutil.Process(_raylet(node)).children()))
        self._cluster.remove_node(node, allow_graceful=False)
        self._until(lambda states: states.get("RUNNING", 0) < self.size)
        noticed = time.monotonic() - started
        self.wait_for(self.size)
        return noticed

    def roll_out(self) -> None:
        """Replaces all engine replicas and routers by those of another version."""
        from cluster.launch.rollout import roll

        old = self.routers
        model = old.settings.model.model_copy(update={"max_num_seqs": old.settings.model.max_num_seqs + 1})
        new = self._with_replicas(routers_of(old.settings.model_copy(update={"model": model})), self.size)
        for _ in roll(old, new, self._per_node, beside=True):
            time.sleep(_POLL_S)
        self.routers = new
        self.wait_for(self.size)

    def loop_ms(self) -> tuple[float, float]:
        """Mean and longest of the controller's last hundred rounds."""
        import ray
        from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        rounds = ray.get(controller.get_health_metrics.remote())["loop_duration_s"]
        return 1000 * rounds["mean"], 1000 * rounds["max"]

    def stop(self) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()

    def _with_replicas(self, routers: Routers, size: int) -> Routers:
        return replace(routers, engines=tuple(engine.with_replicas(size) for engine in routers.engines))

    def _until(self, fact: Callable[[dict[str, int]], bool], *, healthy: bool = False) -> None:
        """Waits until the fact holds of the engine replicas, counted by state. healthy: and all applications run."""
        from cluster.launch.serving import applications

        name, deadline = self.routers.engines[0].application, time.monotonic() + _TIMEOUT_S
        while True:
            found = applications()
            deployment = found[name].deployments[ENGINE]
            states = {str(state): count for state, count in deployment.replica_states.items() if count}
            all_run = all(application.status == "RUNNING" for application in found.values())
            if fact(states) and (all_run or not healthy):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name}: still {states} after {_TIMEOUT_S:.0f} s; {deployment.message}")
            time.sleep(_POLL_S)


def _raylet(node: Any) -> int:
    (raylet,) = node.all_processes["raylet"]
    return int(raylet.process.pid)


@contextmanager
def running(sizes: list[int], routers: int, per_node: int, allowed: int = 0) -> Iterator[ControlPlane]:
    """Runs a head; afterwards no process and no file is left.

    allowed: replicas that the settings allow, which decides the control plane's intervals; 0: no more than there are.
    """
    folder = Path(tempfile.mkdtemp(prefix="dray-b-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stores = [OwnRedis(folder / name, 64) for name in ("answers", "teams")]
        for store in stores:
            store.start()
            stack.callback(store.stop)
        settings = Settings(
            port=free_port(),
            state_dir=folder / "s",
            lease_dir=folder / "c",
            data_dir=folder / "d",
            page=False,
            cache=CacheSettings(url=stores[0].url),
            teams=TeamSettings(url=stores[1].url),
            router=RouterSettings(replicas=routers),
            model=ModelSettings(
                cores_per_replica=1,
                replicas=sizes[0],
                max_replicas=max(allowed, sizes[-1] + 1),
                target_wait_s=TARGET_WAIT_S,
                start_timeout_s=_TIMEOUT_S,
            ),
        )
        private_folder(settings.state_dir)
        stack.enter_context(patch.dict(os.environ))
        # Many replicas that start at once on few cores take longer than a machine with one for each would.
        stack.enter_context(patch.multiple(liveness, START_S=_TIMEOUT_S, SILENCE_S=_TIMEOUT_S))
        stack.enter_context(patch("cluster.serve_config._ENGINE_IMPORT", "benchmarks.engine_stand_in:engine"))
        ports = stack.enter_context(port_block())
        stack.enter_context(ray_node.prepared(settings, ports, "benchmark", alone=True))
        os.environ.update({LOAD_FILE: str(folder / "load"), "PYTHONPATH": str(Path(__file__).parents[1])})
        leave_out_pandas()
        ray_parts.leave_out_unused_processes()
        ray_parts.shrink_agent()
        stack.callback(ray_node.clear, settings.state_dir)
        plane = ControlPlane(settings, folder / "load", per_node)
        stack.callback(plane.stop)
        yield plane
