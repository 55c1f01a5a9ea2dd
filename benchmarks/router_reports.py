"""What it costs that routers tell each other what their teams ask for: a router's processor, Redis and the network.

Every router reports, reads all reports and divides the engines, against a real Redis. Per report of one router.
"""

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path

from benchmarks.service import report
from cluster.redis_client import connect
from cluster.redis_server import OwnRedis
from cluster.settings import LimitSettings, ModelSettings
from deployments.common.redis import RedisCallbacks, RedisStore
from deployments.routing.capacity import RouterShare, RouterShares
from deployments.routing.fair_queue import FairQueue
from deployments.routing.heartbeat import Heartbeat
from deployments.routing.queue_class import TokenCost


async def router(url: str, teams: int, routers: int) -> tuple[Heartbeat, RouterShares, RedisStore]:
    """A router with a running request of each of so many teams, out of ten times as many."""
    queue, shares = FairQueue(10_000, 10_000, 10**9), RouterShares()
    shares.add("engine", RouterShare(queue, ModelSettings(replicas=1000), LimitSettings(), routers))
    for team in random.sample(range(10 * teams), teams):
        await queue.acquire(f"team-{team:04}", 1.0, TokenCost(10, 10))
    store = RedisStore("teams", url, 5.0, RedisCallbacks(lambda: None, lambda is_open: None))
    return Heartbeat(store, "cluster", shares.report, shares.take), shares, store


async def measure(url: str, routers: int, teams: int, rounds: int) -> list[str]:
    made = [await router(url, teams, routers) for _ in range(routers)]
    with connect(url) as client:
        for beat, _, _ in made:
            await beat.send()
        client.config_resetstat()
        before = client.info("cpu"), client.info("stats")
        own = time.process_time()
        for _ in range(rounds):
            for beat, _, _ in made:
                await beat.send()
        own = time.process_time() - own
        after, traffic = client.info("cpu"), client.info("stats")
    for _, _, store in made:
        await store.close()
    used = sum(after[name] - before[0][name] for name in ("used_cpu_user", "used_cpu_sys"))
    reports, sent = rounds * routers, traffic["total_net_output_bytes"] - before[1]["total_net_output_bytes"]
    cells = [1000 * own / reports, 1000 * used / reports, sent / reports / 1024]
    interval_s = made[0][0].interval_s
    load = used / reports * routers / interval_s
    return [f"{routers}", f"{teams}", f"{interval_s:.2f}", *(f"{cell:.2f}" for cell in cells), f"{load:.1%}"]


async def measure_all(rounds: int) -> list[list[str]]:
    rows = []
    for routers, teams in ((2, 20), (20, 20), (20, 120), (100, 20)):
        with tempfile.TemporaryDirectory(prefix="dray-reports-") as folder:
            redis = OwnRedis(Path(folder), 64)
            redis.start()
            try:
                rows.append(await measure(redis.url, routers, teams, max(1, rounds // routers)))
            finally:
                redis.stop()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=int, default=400, help="of all routers together")
    args = parser.parse_args()
    heads = ["routers", "teams at each", "interval, s", "router's processor, ms", "Redis' processor, ms"]
    heads += ["sent by Redis, KiB", "of Redis' core, all routers"]
    print(report("A report of a router", heads, asyncio.run(measure_all(args.reports))))


if __name__ == "__main__":
    main()
