"""Dray's routing policy compared with round robin and Serve's default, on chats with shared system prompts.

There are two replicas of one core, and one router or several. Conversations start one after the other, each with one
of a few long system prompts, and continue turn by turn. Each policy gets the same conversations, in its own service,
in alternating rounds.
"""

import argparse
import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles

import aiohttp

from benchmarks.service import Service, prepared, report
from cluster import serve_config
from cluster.bench.client import ask, session
from cluster.bench.target import Target
from cluster.cli import app as dray
from cluster.launch.state import read_record

POLICIES = {
    "Dray": "",
    "Serve's default (power of two)": "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter",
    "round robin": "benchmarks.round_robin:RoundRobin",
}
_VARIABLE = "BENCH_REQUEST_ROUTER"


@dataclass
class Seen:
    """Results of one policy: seconds to each first token, generated tokens, and seconds per round."""

    first: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)


async def chat(
    client: aiohttp.ClientSession, service: Service, model: str, turns: list[dict[str, str]], tokens: int, seen: Seen
) -> int:
    """One turn: asks, and appends the answer to the turns. Returns the number of generated tokens."""
    body = Target(service.url, "", model, extra={"ignore_eos": True}).body(turns, tokens)
    outcome = await ask(client, service.url, body, text=True)
    if outcome.error:
        raise RuntimeError(outcome.error)
    seen.first.append(outcome.ttft_s)
    seen.cached.append(outcome.cached / outcome.prompt)
    turns.append({"role": "assistant", "content": outcome.text or "Well."})
    return outcome.completion


async def trace(service: Service, model: str, args: argparse.Namespace, seed: int, seen: Seen) -> None:
    """Runs all conversations of a round, `lanes` at a time."""
    chance = random.Random(seed)
    words = [f"w{number}" for number in range(400)]
    systems = [f"{seed} " + " ".join(chance.choices(words, k=args.system)) for _ in range(args.systems)]
    waiting = [
        (system, [" ".join(chance.choices(words, k=args.question)) for _ in range(args.turns)])
        for system in chance.choices(systems, k=args.conversations)
    ]
    made = 0

    async def lane(client: aiohttp.ClientSession) -> None:
        nonlocal made
        while waiting:
            system, questions = waiting.pop()
            turns = [{"role": "system", "content": system}]
            for question in questions:
                turns.append({"role": "user", "content": question})
                tokens = await chat(client, service, model, turns, args.tokens, seen)
                made += tokens

    began = time.perf_counter()
    async with session("", 0, 600) as client:
        await asyncio.gather(*(lane(client) for _ in range(args.lanes)))
    seen.rates.append(made / (time.perf_counter() - began))


@contextmanager
def up_with(policy: str, **settings: str) -> Iterator[Service]:
    """Runs a Dray, with another request router if one is named."""
    with prepared(**settings) as service:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.dispatch", "up"],
            env=service.environment | {_VARIABLE: policy},
            stdout=subprocess.DEVNULL,
        )
        try:
            while (record := read_record(service.folder / "s")) is None or record.stage != "ready":
                if launcher.poll() is not None:
                    raise RuntimeError("it did not start")
                time.sleep(0.2)
            yield service
        finally:
            launcher.terminate()
            launcher.wait()


def compare(args: argparse.Namespace) -> str:
    seen = {name: Seen() for name in POLICIES}
    for number in range(args.rounds):
        for name, path in POLICIES.items():
            with up_with(
                path,
                DRAY_MODEL__SOURCE=args.model,
                DRAY_MODEL__REPLICAS="2",
                DRAY_MODEL__CORES_PER_REPLICA="1",
                DRAY_ROUTER__REPLICAS=str(args.routers),
            ) as service:
                model = service.status()["models"][0]
                asyncio.run(trace(service, model, args, number, seen[name]))
    rows = []
    for name, one in seen.items():
        figures = (1000 * median(one.first), 1000 * quantiles(one.first, n=20)[-1], median(one.rates))
        base = seen["round robin"]
        ratios = (
            median(one.first) / median(base.first),
            quantiles(one.first, n=20)[-1] / quantiles(base.first, n=20)[-1],
            median(one.rates) / median(base.rates),
        )
        told = [f"{figure:,.0f} ({ratio:.2f})" for figure, ratio in zip(figures, ratios, strict=True)]
        rows.append([name, *told, f"{100 * sum(one.cached) / len(one.cached):.0f} %"])
    heads = ["policy", "TTFT p50, ms", "TTFT p95, ms", "tokens/s", "prompt found cached"]
    routers = "one router" if args.routers == 1 else f"{args.routers} routers"
    return report(f"Dispatch, {routers} (in brackets: over round robin's)", heads, rows)


def main() -> None:
    if sys.argv[1:2] == ["up"]:
        serve_config.REQUEST_ROUTER = os.environ[_VARIABLE] or serve_config.REQUEST_ROUTER
        dray()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--routers", type=int, default=1)
    parser.add_argument("--systems", type=int, default=6, help="number of system prompts")
    parser.add_argument("--system", type=int, default=300, help="words per system prompt")
    parser.add_argument("--question", type=int, default=12, help="words per question")
    parser.add_argument("--conversations", type=int, default=40)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=24, help="tokens per answer")
    parser.add_argument("--lanes", type=int, default=6, help="concurrent conversations")
    print(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
