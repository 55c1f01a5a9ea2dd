"""Latency of one question as a miss, as joins and as a hit: times of the first and last token, as clients see them.

Each round asks a new question. After its first token, other clients ask the same; after its answer, one asks it again.
All requests are streamed. With several routers, most of the joins go through Redis.
"""

import argparse
import asyncio
import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median, quantiles

import httpx

from benchmarks.service import report, running
from cluster.settings import BUNDLED


@dataclass
class Seen:
    """Seconds from the request to its first token and to its end."""

    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)


async def ask(client: httpx.AsyncClient, body: dict[str, object], seen: dict[str, Seen], begun: asyncio.Event) -> None:
    """Streams an answer and records its times under the server's X-Dray-Cache. begun: set at its first token."""
    asked, first = time.perf_counter(), 0.0
    async with client.stream("POST", "/chat/completions", json=body) as given:
        given.raise_for_status()
        async for line in given.aiter_lines():
            if not first and _says_something(line):
                first = time.perf_counter()
                begun.set()
        ended = time.perf_counter()
        how = given.headers["x-dray-cache"]
    seen[how].first.append(first - asked)
    seen[how].last.append(ended - asked)


def _says_something(line: str) -> bool:
    if not line.startswith("data: {"):
        return False
    return any(
        choice["delta"].get("reasoning_content") or choice["delta"].get("content")
        for choice in json.loads(line.removeprefix("data: "))["choices"]
    )


async def rounds(url: str, model: str, args: argparse.Namespace) -> dict[str, Seen]:
    seen: defaultdict[str, Seen] = defaultdict(Seen)
    limits = httpx.Limits(max_connections=args.followers + 1)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        for number in range(args.rounds + 1):
            if number == 1:
                seen.clear()  # the first round only opens connections
            question = f"What is {300 + number} times {911 - number}?"
            body = {"model": model, "stream": True, "messages": [{"role": "user", "content": question}]}
            begun = asyncio.Event()
            leader = asyncio.create_task(ask(client, body, seen, begun))
            await begun.wait()
            joined = [ask(client, body, seen, asyncio.Event()) for _ in range(args.followers)]
            await asyncio.gather(leader, *joined)
            await ask(client, body, seen, asyncio.Event())
    return seen


def measure(args: argparse.Namespace) -> str:
    settings = {"DRAY_MODEL__SOURCE": args.model, "DRAY_ROUTER__REPLICAS": str(args.routers)}
    with running(DRAY_MODEL__CORES_PER_REPLICA="1", **settings) as service:
        seen = asyncio.run(rounds(service.url, service.status()["models"][0], args))
    rows = []
    for how in ("miss", "join", "hit"):
        cells = []
        for times in (seen[how].first, seen[how].last):
            cells += [f"{1000 * median(times):.1f}", f"{1000 * quantiles(times, n=20)[-1]:.1f}"]
        rows.append([how, str(len(seen[how].first)), *cells])
    heads = ["answer", "requests", "first token p50, ms", "p95, ms", "last token p50, ms", "p95, ms"]
    return report(f"Miss, join and hit, {args.followers} that join, routers: {args.routers}", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--followers", type=int, default=8)
    parser.add_argument("--routers", type=int, default=1)
    print(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
