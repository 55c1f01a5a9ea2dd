"""Memory of an idle Dray by process, or (--streams) of the engine process under load.

PSS counts a page that N processes share as one Nth for each. The weight file is mapped: replicas on a node share its
pages, and the kernel reclaims them when it needs memory, so they are reported separately.
"""

import argparse
import threading
import time
from pathlib import Path

import psutil

from benchmarks.service import Service, report, running
from benchmarks.streams import measured
from cluster.bench.lengths import Lengths
from cluster.bench.load import Load, RunLength
from cluster.bench.workload import Workload

_SETTLED_S = 10.0


def pss_mb(pid: int) -> float:
    """Proportional set size in MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no Pss for process {pid}")


def weights_and_rest_mb(pid: int) -> tuple[float, float]:
    """Resident MiB of the mapped weight file, and of everything else."""
    weights = rest = 0.0
    of_weights = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            of_weights = line.endswith("openvino_model.bin")
        elif line.startswith("Rss:"):
            if of_weights:
                weights += int(line.split()[1]) / 1024
            else:
                rest += int(line.split()[1]) / 1024
    return weights, rest


def idle(service: Service) -> str:
    # Leftovers of the start, such as a replaced HAProxy, end within these seconds.
    time.sleep(_SETTLED_S)
    sizes = sorted(((pss_mb(process.pid), process_name(process)) for process in service.processes()), reverse=True)
    rows = [[name, f"{size:.0f}"] for size, name in sizes]
    return report("Memory, idle", ["process", "PSS MiB"], [*rows, ["total", f"{sum(size for size, _ in sizes):.0f}"]])


def loaded(service: Service, streams: int, prompt: int, tokens: int) -> str:
    pid = service.status()["replicas"][0]["engine_pid"]
    before = weights_and_rest_mb(pid)
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.5):
            peak = max(peak, weights_and_rest_mb(pid), key=lambda sizes: sizes[1])

    watcher = threading.Thread(target=watch)
    watcher.start()
    workload = Workload(Lengths(prompt, prompt), Lengths(tokens, tokens))
    one = measured(service.url, Load("concurrency", streams), RunLength(0, 2 * streams, 0), workload)
    done.set()
    watcher.join()
    rows = [
        ["idle", f"{before[0]:.0f}", f"{before[1]:.0f}"],
        [f"peak, {streams} streams of {prompt} + {tokens} tokens", f"{peak[0]:.0f}", f"{peak[1]:.0f}"],
    ]
    assert one.output_tokens == 2 * streams * tokens
    return report("Memory of the engine process", ["when", "weight file, mapped MiB", "all else MiB"], rows)


def process_name(process: psutil.Process) -> str:
    """What the process is: its actor, module or program."""
    words = process.cmdline()
    if words and words[0].startswith("ray::"):
        return words[0].removeprefix("ray::").split(" ")[0]
    named = [word for word in words if word.endswith(".py") or ("." in word and word.startswith(("cluster", "deploy")))]
    return Path(named[0]).name if named else process.name()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="model to serve")
    parser.add_argument(
        "--streams", type=int, default=0, help="concurrent requests; 0 measures all processes while idle"
    )
    parser.add_argument("--prompt", type=int, default=256, help="prompt length in tokens")
    parser.add_argument("--tokens", type=int, default=128)
    args = parser.parse_args()
    with running(DRAY_MODEL__SOURCE=args.model) as service:
        print(loaded(service, args.streams, args.prompt, args.tokens) if args.streams else idle(service))


if __name__ == "__main__":
    main()
