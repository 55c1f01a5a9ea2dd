"""What single steps of Serve's controller cost for many engine replicas, up to more than a machine can run.

No replica runs. Serve's own classes hold what replicas under load report, and the steps that touch every replica are
timed: a broadcast of all reports (built once, encoded and decoded once for each router), an autoscaling report of a
replica, and an autoscaling decision. Times are of the processor. `benchmarks.control_plane` measures the whole.
"""

import argparse
import pickle
import time
from collections.abc import Callable
from statistics import median
from unittest.mock import patch

from ray import cloudpickle
from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
from ray.serve._private.common import (
    RUNNING_REQUESTS_KEY,
    DeploymentID,
    DeploymentStatus,
    DeploymentStatusTrigger,
    DeploymentTargetInfo,
    HandleMetricReport,
    ReplicaID,
    ReplicaMetricReport,
    ReplicaState,
    RunningReplicaInfo,
    TimeStampedValue,
)
from ray.serve._private.long_poll import LongPollNamespace, UpdatedObject
from ray.serve._private.utils import compress_metric_report, decompress_metric_report
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import (
    APIType,
    ApplicationDetails,
    ApplicationStatus,
    DeploymentDetails,
    DeploymentSchema,
    ProxyDetails,
    ProxyStatus,
    ReplicaDetails,
    ServeActorDetails,
    ServeInstanceDetails,
)

from benchmarks.engine_stand_in import Load, autoscaling_stats, routing_stats
from benchmarks.service import report
from cluster.autoscaling import PredictedWait
from cluster.serve_config import ENGINE
from deployments.common.messages import ROUTING_STATS, ReplicaStats, decode_stats
from deployments.routing.registry import EngineReplicas

_DEPLOYMENT = DeploymentID(ENGINE, "engine-dray-demo-0123456789")
_ROUNDS = 5
_INTERVAL_S = 0.5
"""Between two rounds of the controller: RAY_SERVE_CONTROL_LOOP_INTERVAL_S."""


def _cpu_ms(step: Callable[[], object]) -> float:
    """Median of some runs."""
    spent = []
    for _ in range(_ROUNDS):
        started = time.thread_time()
        step()
        spent.append(time.thread_time() - started)
    return 1000 * median(spent)


class Fleet:
    """What the controller knows of so many replicas. points: of each series that a report contains."""

    def __init__(self, replicas: int, routers: int, points: int) -> None:
        self.load = Load(replicas, routers, busy=True)
        self.stats = [routing_stats(self.load, number) for number in range(replicas)]
        self.ids = [ReplicaID(f"{number:08x}", _DEPLOYMENT) for number in range(replicas)]
        self.routers, self._points, self._turn = routers, points, 0

    def infos(self) -> list[RunningReplicaInfo]:
        """What Serve broadcasts of the replicas; it is built anew each time."""
        return [
            RunningReplicaInfo(
                replica_id=replica,
                node_id="f" * 56,
                node_ip="10.0.0.1",
                availability_zone=None,
                actor_name=replica.to_full_id_str(),
                max_ongoing_requests=272,
                routing_stats=stats,
                port=20_000,
            )
            for replica, stats in zip(self.ids, self.stats, strict=True)
        ]

    def report_half(self) -> None:
        """Half of the replicas report something new: each does once a second, in one of two rounds."""
        self._turn = 1 - self._turn
        for number in range(self._turn, len(self.stats), 2):
            self.stats[number] = routing_stats(self.load, number)

    def _series(self, value: float) -> list[TimeStampedValue]:
        now = time.time()
        return [TimeStampedValue(now - point, value) for point in reversed(range(self._points))]

    def report_of(self, replica: ReplicaID) -> ReplicaMetricReport:
        series = {name: self._series(value) for name, value in autoscaling_stats(self.load).items()}
        return ReplicaMetricReport(replica_id=replica, metrics=series, timestamp=time.time())

    def handle_report(self, router: int) -> HandleMetricReport:
        running = {replica.to_full_id_str(): self._series(4.0) for replica in self.ids}
        return HandleMetricReport(
            deployment_id=_DEPLOYMENT,
            handle_id=f"handle-{router}",
            actor_id=f"actor-{router}",
            handle_source="REPLICA",
            queued_requests=self._series(0.0),
            metrics={RUNNING_REQUESTS_KEY: running},
            timestamp=time.time(),
        )


def encoded(infos: list[RunningReplicaInfo]) -> bytes:
    """A broadcast as it is sent to a router."""
    snapshot = UpdatedObject(DeploymentTargetInfo(True, infos), 1, time.time())
    return bytes(cloudpickle.dumps({(LongPollNamespace.DEPLOYMENT_TARGETS, _DEPLOYMENT): snapshot}, protocol=5))


def decision(fleet: Fleet) -> Callable[[], object]:
    """An autoscaling decision, as the controller takes one in each round."""
    state = DeploymentAutoscalingState(_DEPLOYMENT)
    state._config = AutoscalingConfig(min_replicas=1, max_replicas=2 * len(fleet.ids))
    state.update_running_replica_ids(fleet.ids)
    for replica in fleet.ids:
        state.record_request_metrics_for_replica(fleet.report_of(replica))
    for router in range(fleet.routers):
        state.record_request_metrics_for_handle(fleet.handle_report(router))
    state._policy = PredictedWait("dray-demo", 20.0)
    return lambda: state.get_decision_num_replicas(len(fleet.ids), _skip_bound_check=True)


def answer(fleet: Fleet) -> Callable[[], object]:
    """What the controller answers to a router's /health/ready and, every two seconds, to KubeRay. A node a replica."""
    where = {"node_id": "f" * 56, "node_ip": "10.0.0.1", "actor_id": "a" * 32, "worker_id": "b" * 56}
    replicas = [
        ReplicaDetails(
            **where,
            actor_name=replica.to_full_id_str(),
            log_file_path=f"/serve/replica_{replica.unique_id}.log",
            replica_id=replica.unique_id,
            state=ReplicaState.RUNNING,
            start_time_s=0.0,
        )
        for replica in fleet.ids
    ]
    proxies = {
        f"{number:056}": ProxyDetails(**where, actor_name=f"proxy-{number}", status=ProxyStatus.HEALTHY)
        for number in range(len(replicas))
    }

    def told() -> object:
        engines = DeploymentDetails(
            name=ENGINE,
            status=DeploymentStatus.HEALTHY,
            status_trigger=DeploymentStatusTrigger.UNSPECIFIED,
            message="",
            deployment_config=DeploymentSchema(name=ENGINE),
            target_num_replicas=len(replicas),
            required_resources={},
            replicas=replicas,
        )
        application = ApplicationDetails(
            name=_DEPLOYMENT.app_name,
            route_prefix=None,
            docs_path=None,
            status=ApplicationStatus.RUNNING,
            message="",
            last_deployed_time_s=0.0,
            deployed_app_config=None,
            source=APIType.DECLARATIVE,
            external_scaler_enabled=False,
            deployments={ENGINE: engines},
        )
        return ServeInstanceDetails(
            controller_info=ServeActorDetails(**where),
            proxy_location=None,
            proxies=proxies,
            applications={application.name: application},
            target_capacity=None,
        )._get_user_facing_json_serializable_dict(exclude_unset=True)

    return told


class Router:
    """A router's work for broadcasts, but for Serve's own table of replicas."""

    def __init__(self) -> None:
        self._replicas = EngineReplicas("router")
        self._reports: dict[str, tuple[bytes, ReplicaStats]] = {}

    def take(self, message: bytes) -> None:
        """As deployments.routing.serve_router does: what a replica has reported before is not decoded again."""
        (updated,) = pickle.loads(message).values()
        reports = {}
        for info in updated.object_snapshot.running_replicas:
            name, raw = info.replica_id.unique_id, info.routing_stats[ROUTING_STATS]
            known = self._reports.get(name)
            reports[name] = known if known and known[0] == raw else (raw, decode_stats(raw))
        self._reports = reports
        self._replicas.update({name: stats for name, (_, stats) in reports.items()})


def measure(replicas: int, routers: int, points: int) -> list[str]:
    fleet = Fleet(replicas, routers, points)
    before = fleet.infos()
    building = _cpu_ms(lambda: set(before) != set(fleet.infos()))
    messages = [encoded(before)]
    for _ in range(_ROUNDS):
        fleet.report_half()
        messages.append(encoded(fleet.infos()))
    encoding = _cpu_ms(lambda: encoded(before))
    router, came = Router(), iter(messages)
    router.take(next(came))
    taking = _cpu_ms(lambda: router.take(next(came)))
    packed = compress_metric_report(fleet.report_of(fleet.ids[0]))
    unpacking = _cpu_ms(lambda: [decompress_metric_report(packed) for _ in range(100)]) / 100
    with patch("cluster.scaling_history.ScalingHistory.note"):
        deciding = _cpu_ms(decision(fleet))
    broadcast = building + routers * encoding
    cells = [building, encoding, taking, broadcast, deciding, _cpu_ms(answer(fleet))]
    told = [f"{replicas:,}", f"{routers}", *(f"{cell:,.1f}" for cell in cells), f"{1000 * unpacking:,.0f}"]
    return [*told, f"{len(messages[0]) / 1024:,.0f}", f"{(broadcast + deciding) / 1000 / _INTERVAL_S:.0%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--routers", type=int, nargs="+", default=[2, 20])
    parser.add_argument("--points", type=int, default=3, help="of each series in an autoscaling report")
    args = parser.parse_args()
    heads = ["replicas", "routers", "building a broadcast, ms", "encoding it for a router, ms"]
    heads += ["a router's work for it, ms", "a broadcast to all, ms", "a decision, ms", "an answer about all, ms"]
    heads += ["decoding a replica's report, µs", "sent to a router, KiB", "of a core, with both every half second"]
    rows = [measure(replicas, routers, args.points) for routers in args.routers for replicas in args.replicas]
    print(report("Steps of Serve's controller", heads, rows))


if __name__ == "__main__":
    main()
