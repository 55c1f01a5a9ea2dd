"""What single flight asks of Redis: commands for each finished request and each streamed token, by who follows.

Generations run at a real pace, without engines: each router hands its flights a token at a time. They are followed by
nobody, resumable by a retry (their clients sent an Idempotency-Key), or followed at another router. Commands that a
script runs inside are counted apart from those that routers send. Then followers join generations that run, and it is
measured how long the first token takes to them. Of a Redis Cluster, the busiest node says what all of them hold.
"""

import argparse
import asyncio
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

from redis import Redis
from redis.cluster import RedisCluster

from benchmarks.service import report
from cluster.records.cache import key_of
from cluster.redis_client import connect
from cluster.redis_server import OwnRedis
from deployments.cache.flight_lease import FlightLease
from deployments.cache.single_flight import SingleFlight
from deployments.common.messages import TokenBatch
from deployments.common.redis import RedisCallbacks, RedisStore
from deployments.routing.queue_class import QueueClass

_PERSON = QueueClass("anyone", 1.0, batch=False)
_MAX_COMMANDS = 6
_IN_SCRIPTS = {"get", "set", "del", "xadd", "pexpire", "xrevrange"}
"""Commands that the scripts of flights run inside."""
_FULL = 0.7
"""Share of its one core from which a Redis counts as full."""
_IDLE_S = 5.0
_CONNECTING = {"hello", "client|setinfo"}
_OF_BENCHMARK = {"config|resetstat", "info"}
Kind = Literal["followed by nobody", "resumable", "followed"]
KINDS: tuple[Kind, ...] = ("followed by nobody", "resumable", "followed")


def store_of(url: str) -> RedisStore:
    return RedisStore("answers", url, 1.0, RedisCallbacks(lambda: None, lambda is_open: None))


async def lease_of(router: SingleFlight, key: str, *, resumable: bool = False) -> FlightLease:
    acquired = await router.acquire(key, _PERSON, resumable=resumable)
    assert isinstance(acquired, FlightLease)
    return acquired


async def generate(lease: FlightLease, args: argparse.Namespace) -> None:
    """One generation, of which every token is recorded as it comes."""
    await asyncio.sleep(random.random() * args.pace_ms / 1000)
    for token in range(args.tokens):
        lease.record(0, 0, TokenBatch([token], "stop" if token + 1 == args.tokens else ""))
        await asyncio.sleep(args.pace_ms / 1000)
    await lease.complete(b"answer" * 100, 60)


async def consume(lease: FlightLease) -> None:
    """Receives all tokens of another router's generation."""
    async for _ in lease.follow(0, 0):
        pass
    await lease.release()


async def commands(url: str, kind: Kind, args: argparse.Namespace) -> tuple[Counter[str], list[float]]:
    """The commands that a number of generations at a time cost, by name, and the seconds of each node's processor,
    without those of an idle node."""
    stores = [store_of(url) for _ in range(2)]
    first, second = (SingleFlight(store) for store in stores)
    warm = await lease_of(first, key_of("m", "n", secrets.token_hex(20)))
    await warm.complete()
    with ExitStack() as stack:
        nodes = [stack.enter_context(client) for client in clients_of(url)]
        for node in nodes:
            node.config_resetstat()
        keys = [key_of("m", "n", secrets.token_hex(20)) for _ in range(args.flights)]
        idle = await _idle_shares(nodes)
        before, started = [redis_seconds(node) for node in nodes], time.perf_counter()
        leases = [await lease_of(first, key, resumable=kind == "resumable") for key in keys]
        tasks = [asyncio.create_task(generate(lease, args)) for lease in leases]
        if kind == "followed":
            tasks += [asyncio.create_task(consume(await lease_of(second, key))) for key in keys]
        await asyncio.gather(*tasks)
        took = time.perf_counter() - started
        used = [redis_seconds(node) - earlier for node, earlier in zip(nodes, before, strict=True)]
        seconds = [each - took * share for each, share in zip(used, idle, strict=True)]
        calls = Counter[str]()
        for node in nodes:
            for name, stat in node.info("commandstats").items():
                calls[name.removeprefix("cmdstat_")] += stat["calls"]
    for store in stores:
        await store.close()
    return Counter({name: count for name, count in calls.items() if name not in _CONNECTING | _OF_BENCHMARK}), seconds


async def _idle_shares(nodes: list[Any]) -> list[float]:
    """Share of a processor that each node takes while nobody asks anything."""
    before = [redis_seconds(node) for node in nodes]
    await asyncio.sleep(_IDLE_S)
    return [(redis_seconds(node) - earlier) / _IDLE_S for node, earlier in zip(nodes, before, strict=True)]


def clients_of(url: str) -> list[Any]:
    """A client of each node."""
    client = connect(url)
    if not isinstance(client, RedisCluster):
        return [client]
    with client:
        return [Redis(host=node.host, port=node.port) for node in client.get_primaries()]  # type: ignore[no-untyped-call]


def redis_seconds(client: Any) -> float:
    """Seconds of the processor that a Redis has used."""
    cpu = client.info("cpu")
    return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])


async def first_tokens(url: str, args: argparse.Namespace) -> list[float]:
    """Seconds from a request at another router to its first token."""
    stores = [store_of(url) for _ in range(2)]
    first, second = (SingleFlight(store) for store in stores)
    seconds = []
    for _ in range(args.joins):
        key = key_of("m", "n", secrets.token_hex(20))
        leader = await lease_of(first, key)
        task = asyncio.create_task(generate(leader, args))
        await asyncio.sleep(random.uniform(0.5, 0.8))
        started = time.perf_counter()
        follower = await lease_of(second, key)
        async for _batch in follower.follow(0, 0):
            seconds.append(time.perf_counter() - started)
            break
        task.cancel()
        await leader.release()
        await follower.release()
    for store in stores:
        await store.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flights", type=int, default=200, help="generations at a time")
    parser.add_argument("--tokens", type=int, default=100, help="of each generation")
    parser.add_argument("--pace-ms", type=float, default=100, help="between two tokens")
    parser.add_argument("--joins", type=int, default=30)
    parser.add_argument("--url", default="", help="of a Redis or a Redis Cluster; default: a Redis of its own")
    args = parser.parse_args()
    rows, alone = [], 0.0
    with tempfile.TemporaryDirectory(prefix="dray-flights-") as folder:
        redis = None if args.url else OwnRedis(Path(folder), 64)
        if redis:
            redis.start()
        url = redis.url if redis else args.url
        try:
            for kind in KINDS:
                calls, seconds = asyncio.run(commands(url, kind, args))
                inside = sum(count for name, count in calls.items() if name in _IN_SCRIPTS)
                sent = sum(calls.values()) - inside
                alone = alone or sent / args.flights
                shown = ", ".join(f"{name} {count:,}" for name, count in calls.most_common(8))
                per_token = f"{sent / args.flights / args.tokens:.3f}"
                rows.append([kind, f"{sent / args.flights:.1f}", per_token, f"{inside / args.flights:.1f}"])
                busiest = max(seconds) / args.flights
                rows[-1] += [f"{1e6 * sum(seconds) / args.flights:,.0f}", f"{_FULL / busiest:,.0f}", shown]
            joined = asyncio.run(first_tokens(url, args))
        finally:
            if redis:
                redis.stop()
    heads = ["", "sent per request", "per token", "inside scripts, per request"]
    heads += ["Redis' processor, µs per request", "requests/s at 70 % of a core", "INFO commandstats"]
    print(report(f"Commands of {args.flights} flights of {args.tokens} tokens in one router", heads, rows))
    shown = f"p50 {1000 * median(joined):.0f} ms, p95 {1000 * quantiles(joined, n=20)[-1]:.0f} ms"
    print(f"\nA follower's first token from a generation under way: {shown}.")
    if alone > _MAX_COMMANDS:
        sys.exit(f"{alone:.1f} commands for a request that nobody follows; the limit is {_MAX_COMMANDS}.")


if __name__ == "__main__":
    main()
