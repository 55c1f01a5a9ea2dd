"""CPU time of each process per streamed token: router, HAProxy, engine replica and engine; and bytes to the client.

Concurrent streams run for a while; what the processes use while idle is subtracted.
"""

import argparse
import csv
import socket
import time
from collections import defaultdict
from statistics import median

import psutil

from benchmarks.service import Service, report, running
from benchmarks.streams import streams

KINDS = {
    "router": "ServeReplica:dray:router",
    "HAProxy": "haproxy",
    "engine replica": "ServeReplica:engine-",
    "engine process": "deployments.engine.core",
}
_IDLE_S = 5.0


def used_s(service: Service) -> dict[str, float]:
    """CPU seconds so far, by kind of process."""
    used: defaultdict[str, float] = defaultdict(float)
    for process in service.processes():
        try:
            line, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        for kind, mark in KINDS.items():
            if mark in line:
                used[kind] += times.user + times.system
                break
    return dict(used)


def sent_bytes(service: Service) -> int:
    """Bytes that HAProxy has sent to clients so far."""
    (path,) = (service.folder / "s").rglob("admin.sock")
    with socket.socket(socket.AF_UNIX) as admin:
        admin.connect(str(path))
        admin.sendall(b"show stat\n")
        table = b"".join(iter(lambda: admin.recv(65_536), b"")).decode()
    rows = csv.DictReader(table.removeprefix("# ").splitlines())
    return sum(int(row["bout"]) for row in rows if row["svname"] == "FRONTEND")


def measure(args: argparse.Namespace) -> str:
    costs: defaultdict[str, list[float]] = defaultdict(list)
    rates, sizes = [], []
    with running(DRAY_MODEL__SOURCE=args.model, DRAY_MODEL__CORES_PER_REPLICA="1") as service:
        load = {"each": args.each, "prompt": 60, "tokens": args.tokens}
        streams(service.url, args.streams, **load)
        for _ in range(args.rounds):
            before = used_s(service)
            time.sleep(_IDLE_S)
            idle, sent, began = used_s(service), sent_bytes(service), time.perf_counter()
            made = streams(service.url, args.streams, **load)
            took, after = time.perf_counter() - began, used_s(service)
            rates.append(made.tokens_per_s)
            sizes.append((sent_bytes(service) - sent) / made.output_tokens)
            for kind in KINDS:
                at_rest = (idle[kind] - before[kind]) / _IDLE_S
                costs[kind].append((after[kind] - idle[kind] - at_rest * took) / made.output_tokens)
    rows = [[kind, f"{1e6 * median(seconds):.0f}"] for kind, seconds in costs.items()]
    title = f"CPU for a streamed token, {args.streams} streams at {median(rates):.0f} tokens/s"
    table = report(title, ["process", "microseconds a token"], rows)
    return f"{table}\nHAProxy sends {median(sizes):.0f} bytes to the client for a token.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--each", type=int, default=4, help="requests per stream and round")
    parser.add_argument("--tokens", type=int, default=256)
    print(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
