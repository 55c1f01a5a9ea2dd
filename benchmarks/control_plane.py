"""What the control plane costs by the number of engine replicas: at rest, with reports as under load, while replicas
start, after the loss of a node and during the change to a new version.

Everything but the engines is real, on pretended nodes (`benchmarks.pretended_nodes`). Replicas report as under load;
no request comes: all work is for the control plane. A line through the sizes says what more replicas cost.
"""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from statistics import linear_regression

import psutil

from benchmarks.memory import process_name, pss_mb
from benchmarks.pretended_nodes import ControlPlane, running
from benchmarks.service import report
from cluster.serve_config import ROUTER, ROUTERS

_SETTLED_S = 12.0
_LARGE = 1000
_KINDS = {
    "controller": ("ServeController",),
    "GCS": ("gcs_server",),
    "raylets": ("raylet", "DashboardAgent", "RuntimeEnvAgent"),
    "proxies": ("HAProxyManager", "haproxy", "ProxyActor"),
    "routers": (f"ServeReplica:{ROUTERS}:{ROUTER}",),
    "replicas": ("ServeReplica:engine-",),
}
"""How the names of the processes begin that belong together."""


def _kind(process: psutil.Process) -> str:
    name = process_name(process)
    return next((kind for kind, names in _KINDS.items() if name.startswith(names)), "")


def spent() -> dict[psutil.Process, tuple[str, float]]:
    """Kind and seconds of processor time of each process that this one has started."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            times = process.cpu_times()
            found[process] = (_kind(process), times.user + times.system)
    return found


@dataclass(frozen=True, slots=True)
class Use:
    """Processor time by kind of process, over some seconds. Of a process that has ended meanwhile, none."""

    seconds: float
    cpu_s: dict[str, float]

    @classmethod
    def during(cls, step: Callable[[], None]) -> "Use":
        before, started = spent(), time.monotonic()
        step()
        seconds, cpu_s = time.monotonic() - started, dict.fromkeys(("", *_KINDS), 0.0)
        for process, (kind, after) in spent().items():
            cpu_s[kind] += after - before.get(process, ("", 0.0))[1]
        return cls(seconds, cpu_s)

    def share(self, kind: str, processes: int = 1) -> float:
        """Per cent of a core of each."""
        return 100 * self.cpu_s[kind] / self.seconds / processes


@dataclass(frozen=True, slots=True)
class Rest:
    """A row of the first table: what it cost while nothing changed."""

    replicas: int
    nodes: int
    busy: bool
    use: Use
    loop_ms: tuple[float, float]
    routers: int

    @property
    def figures(self) -> dict[str, float]:
        """Per cent of a core, each router's and each replica's own."""
        use, nodes = self.use, self.nodes + 1
        shares = {kind: use.share(kind) for kind in ("controller", "GCS", "proxies")}
        return shares | {
            "each router": use.share("routers", self.routers),
            "each node's raylet": use.share("raylets", nodes),
            "each replica": use.share("replicas", self.replicas),
        }

    @property
    def row(self) -> list[str]:
        state = "as under load" if self.busy else "at rest"
        figures = [f"{figure:.2f}" for figure in self.figures.values()]
        return [f"{self.replicas}", f"{self.nodes}", state, *figures, f"{self.loop_ms[0]:.0f}, {self.loop_ms[1]:.0f}"]


def rest(plane: ControlPlane, seconds: float, *, busy: bool) -> Rest:
    plane.report_load(plane.size, busy=busy)
    time.sleep(_SETTLED_S)
    use = Use.during(lambda: time.sleep(seconds))
    routers = plane.routers.settings.router.replica_minimum
    return Rest(plane.size, plane.nodes, busy, use, plane.loop_ms(), routers)


def event(plane: ControlPlane, name: str, step: Callable[[], object]) -> list[str]:
    """A row of the second table."""
    noticed: list[object] = []
    use = Use.during(lambda: noticed.append(step()))
    told = f"{noticed[0]:.1f}" if isinstance(noticed[0], float) else ""
    cpu = [f"{use.cpu_s[kind]:.1f}" for kind in ("controller", "GCS", "raylets")]
    return [f"{plane.size}", name, f"{use.seconds:.0f}", told, *cpu, f"{plane.loop_ms()[1]:.0f}"]


def measure(
    plane: ControlPlane, sizes: list[int], seconds: float, *, failures: bool
) -> tuple[list[Rest], list[list[str]]]:
    rests, events = [], []
    for size in sizes:
        before = plane.size
        plane.prepare(size)
        # The first ones start with Serve and its routers. The policy adds the others.
        start = plane.grow if before else plane.start
        events.append(event(plane, f"{size - before} more start", partial(start, size)))
        rests += [rest(plane, seconds, busy=busy) for busy in (False, True)]
        plane.report_load(size, busy=False)
        if failures:
            events.append(event(plane, "a node is lost", plane.lose_node))
            # The stand-ins of the new version report load at once, so as many are wanted beside the old ones.
            plane.prepare(2 * size)
            events.append(event(plane, "a new version", plane.roll_out))
        for row in (*(one.row for one in rests), *events):
            print(" | ".join(row), file=sys.stderr, flush=True)
    return rests, events


def slopes(rests: list[Rest]) -> list[list[str]]:
    """Lines through the sizes, and what they say of a large one."""
    rows = []
    for busy in (False, True):
        found = [one for one in rests if one.busy is busy]
        for name in ("controller", "GCS", "each router"):
            line = linear_regression([one.replicas for one in found], [one.figures[name] for one in found])
            large = line.intercept + _LARGE * line.slope
            state = "as under load" if busy else "at rest"
            rows.append([name, state, f"{line.intercept:.2f}", f"{line.slope:.3f}", f"{large:.0f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[10, 30, 60], help="sizes, the smallest first")
    parser.add_argument("--per-node", type=int, default=10, help="replicas that fit on a node")
    parser.add_argument("--routers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30, help="how long to measure while nothing changes")
    parser.add_argument("--allowed", type=int, default=0, help="measure with the intervals of so many replicas")
    parser.add_argument("--rest", action="store_true", help="neither lose a node nor change to a new version")
    args = parser.parse_args()
    with running(args.replicas, args.routers, args.per_node, args.allowed) as plane:
        rests, events = measure(plane, args.replicas, args.seconds, failures=not args.rest)
        sizes = [f"{pss_mb(process.pid):.0f}" for process in spent() if _kind(process) == "controller"]
    heads = ["replicas", "nodes", "state", *(f"{name}, % of a core" for name in rests[0].figures)]
    print(report("At rest", [*heads, "controller's round, ms: mean, longest"], [one.row for one in rests]))
    print(f"The controller's memory at the end: {', '.join(sizes)} MiB.\n")
    heads = ["replicas", "event", "seconds", "noticed after, s", "controller, s of processor", "GCS", "raylets"]
    print(report("Events", [*heads, "longest round, ms"], events))
    if len(args.replicas) > 1:
        heads = ["process", "state", "% of a core without replicas", "for each replica", f"for {_LARGE:,}, by the line"]
        print(report("By the number of replicas", heads, slopes(rests)))


if __name__ == "__main__":
    main()
