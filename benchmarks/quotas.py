"""What quotas and usage ask of the teams' Redis, and how many requests a second it admits for several routers.

The routers are as many sets of objects in one process, each with its own connections. Each request is admitted,
reserves tokens, settles and is released, and its usage is counted.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

from benchmarks.flights import redis_seconds
from benchmarks.service import report
from cluster.records.team_records import Quota, Team
from cluster.redis_client import connect
from cluster.redis_server import OwnRedis
from deployments.common.redis import RedisCallbacks, RedisStore
from deployments.common.types import Usage
from deployments.tenancy.quotas import Quotas
from deployments.tenancy.usage import UsageRecorder

_QUOTA = Quota(10**6, 10**9, 10**4, 10**12)
_FULL = 0.7
"""Share of its one core from which a Redis counts as full."""


async def run(url: str, args: argparse.Namespace) -> tuple[float, list[float], float, float]:
    """Requests a second, seconds of each admission, commands and seconds of Redis' processor for each request."""
    faults: list[bool] = []
    callbacks = RedisCallbacks(lambda: faults.append(True), lambda is_open: None)
    stores = [RedisStore("teams", url, 1.0, callbacks) for _ in range(args.routers)]
    routers = [(Quotas(store, args.routers), UsageRecorder(store)) for store in stores]
    flushing = [asyncio.create_task(usage.flush_forever()) for _, usage in routers]
    teams = [Team(f"team-{number}", 0.0, quota=_QUOTA) for number in range(args.teams)]
    seconds: list[float] = []
    end = time.perf_counter() + args.seconds

    async def lane(quotas: Quotas, usage: UsageRecorder) -> None:
        while time.perf_counter() < end:
            team, began = random.choice(teams), time.perf_counter()
            grant = await quotas.admit(team)
            await grant.reserve(500)
            seconds.append(time.perf_counter() - began)
            await grant.settle(300)
            await grant.release()
            usage.record(team.name, "model", Usage(200, 100, 0, 0), generated=True)

    with connect(url) as client:
        calls, used, began = (
            client.info("stats")["total_commands_processed"],
            redis_seconds(client),
            time.perf_counter(),
        )
        await asyncio.gather(*(lane(*router) for router in routers for _ in range(args.lanes)))
        took = time.perf_counter() - began
        calls, used = client.info("stats")["total_commands_processed"] - calls, redis_seconds(client) - used
    for task in flushing:
        task.cancel()
    for store in stores:
        await store.close()
    if faults:
        sys.exit(f"{len(faults)} calls to Redis failed.")
    return len(seconds) / took, seconds, calls / len(seconds), used / len(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routers", type=int, default=8)
    parser.add_argument("--teams", type=int, default=200)
    parser.add_argument("--lanes", type=int, default=8, help="requests at a time in each router")
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dray-quotas-") as folder:
        redis = OwnRedis(Path(folder), 64)
        redis.start()
        try:
            rate, seconds, calls, used = asyncio.run(run(redis.url, args))
        finally:
            redis.stop()
    row = [f"{rate:,.0f}", f"{1000 * median(seconds):.1f}", f"{1000 * quantiles(seconds, n=20)[-1]:.1f}"]
    row += [f"{calls:.1f}", f"{1e6 * used:,.0f}", f"{_FULL / used:,.0f}"]
    heads = ["requests/s, one process", "admission p50, ms", "p95, ms", "commands a request, scripts' own included"]
    heads += ["Redis' processor, µs a request", "requests/s at 70 % of a core"]
    print(report(f"Quotas of {args.teams} teams over {args.routers} routers", heads, [row]))


if __name__ == "__main__":
    main()
