"""Effect of pinning and of the replicas' size, on the same streams.

Compares one engine on all cores, one engine per core, and as many engines that all share all cores, as they would
without core leases.
"""

import argparse
import asyncio
import os
from contextlib import AsyncExitStack
from statistics import median

from benchmarks.service import report
from benchmarks.throughput import engine_streams
from cluster.models.folder import open_model
from cluster.settings import ModelSettings, default_models_dir
from deployments.engine.model import config_for
from deployments.engine.process import EngineProcess


async def rate(args: argparse.Namespace, leases: list[tuple[int, ...]]) -> tuple[float, float]:
    """Tokens/s of all engines together, and the slowest engine's over the fastest's. leases: CPUs of each engine."""
    model = open_model(ModelSettings(source=args.model), default_models_dir())
    async with AsyncExitStack() as stack:
        engines = []
        for cpus in leases:
            engine, _ = await EngineProcess.start(config_for(model, cpus), timeout_s=300)
            stack.push_async_callback(engine.stop)
            engines.append(engine)
        load = {"rounds": 1, "prompt": 64, "tokens": args.tokens}
        share = args.streams // len(engines)
        rates = await asyncio.gather(*(engine_streams(one, share, **load) for one in engines))
        # The work ends with the slowest engine.
        return len(rates) * min(rates), min(rates) / max(rates)


async def compare(args: argparse.Namespace) -> str:
    cpus = sorted(os.sched_getaffinity(0))
    ways: dict[str, list[tuple[int, ...]]] = {
        f"one replica of {len(cpus)} cores": [tuple(cpus)],
        f"{len(cpus)} replicas, each pinned to one core": [(cpu,) for cpu in cpus],
        f"{len(cpus)} replicas, all on all cores": [tuple(cpus) for _ in cpus],
    }
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, leases in ways.items():
            seen[name].append(await rate(args, leases))
    base = median(one for one, _ in next(iter(seen.values())))
    rows = []
    for name, found in seen.items():
        made = median(one for one, _ in found)
        rows.append([name, f"{made:.1f}", f"{made / base:.2f}", f"{median(even for _, even in found):.2f}"])
    heads = ["replicas", "tokens/s", "over the first", "slowest over fastest"]
    return report(f"Pinned and not, {args.streams} streams", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    print(asyncio.run(compare(parser.parse_args())))


if __name__ == "__main__":
    main()
