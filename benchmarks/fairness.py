"""Time to first token of a quiet team beside a team with 50 times its load.

The quiet team has one request at a time. The cases: it is alone; another team keeps half of the slots busy, which is
its share of capacity; another team has 50 requests at a time; and the same 50 use the quiet team's key, as if there
were no teams.
"""

import argparse
import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized
from statistics import median, quantiles
from typing import Any

from benchmarks.service import Service, report, running
from cluster.bench.client import Outcome, ask, session
from cluster.bench.target import Target


def body(target: Target, tokens: int) -> dict[str, Any]:
    """A request with a new question, for this many tokens."""
    text = f"What is {secrets.randbelow(1000)} + {secrets.randbelow(1000)}? {secrets.token_hex(4)}"
    return target.body([{"role": "user", "content": text}], tokens)


def answered(outcome: Outcome) -> Outcome:
    if outcome.error:
        raise RuntimeError(outcome.error)
    return outcome


async def ask_on(url: str, model: str, key: str, tokens: int, lanes: int, answers: "Synchronized[int]") -> None:
    """Asks forever, in this many lanes, one question after the other. answers: counts the answers."""
    # Not streamed, to keep the client cheap.
    target = Target(url, key, model, stream=False, extra={"ignore_eos": True})

    async def lane() -> None:
        while True:
            answered(await ask(client, url, body(target, tokens)))
            with answers:
                answers.value += 1

    async with session(key, lanes, 600) as client:
        await asyncio.gather(*(lane() for _ in range(lanes)))


def _other(*given: Any) -> None:
    asyncio.run(ask_on(*given))


def _at_work(answers: "Synchronized[int]", least: int) -> None:
    deadline = time.monotonic() + 300
    while answers.value < least:
        if time.monotonic() > deadline:
            raise RuntimeError("the other team gets too few answers")
        time.sleep(0.05)


@asynccontextmanager
async def beside(url: str, model: str, key: str, tokens: int, lanes: int) -> AsyncIterator[list[float]]:
    """Runs the other team during the block, in a separate process, which leaves this one's clock undisturbed.

    Yields a list that afterwards holds its answers per second.
    """
    rate: list[float] = []
    if not lanes:
        yield rate
        return
    apart = get_context("spawn")
    answers = apart.Value("i", 0)
    other = apart.Process(target=_other, args=(url, model, key, tokens, lanes, answers), daemon=True)
    other.start()
    try:
        await asyncio.to_thread(_at_work, answers, 2 * lanes)
        before, began = answers.value, time.perf_counter()
        yield rate
        rate.append((answers.value - before) / (time.perf_counter() - began))
    finally:
        other.kill()
        other.join()


async def compare(service: Service, args: argparse.Namespace) -> str:
    keys = {}
    for team in ("quiet", "other"):
        service.run("teams", "add", team)
        keys[team] = json.loads(service.run("keys", "create", team, "--json").stdout)["key"]
    await asyncio.sleep(1)
    model = service.status()["models"][0]
    cases = [
        ("nobody", "other", 0),
        ("a team on its share, 16 at a time", "other", 16),
        ("a flood, 50 at a time", "other", 50),
        ("the same flood with its own key", "quiet", 50),
    ]
    seen: dict[str, list[float]] = {name: [] for name, *_ in cases}
    others: dict[str, list[float]] = {name: [0.0] for name, *_ in cases}
    # With logprobs, tokens that are no character have events too.
    quiet = Target(service.url, keys["quiet"], model, extra={"ignore_eos": True, "logprobs": True})
    async with session(quiet.key, 1, 600) as client:
        for _ in range(args.rounds):
            for name, team, lanes in cases:
                async with beside(service.url, model, keys[team], args.tokens, lanes) as rate:
                    deadline = time.monotonic() + args.seconds
                    while time.monotonic() < deadline:
                        outcome = answered(await ask(client, quiet.url, body(quiet, args.tokens)))
                        seen[name].append(outcome.ttft_s)
                others[name] += rate
    latest = {name: quantiles(times, n=20)[-1] for name, times in seen.items()}
    share = latest[cases[1][0]]
    rows = [
        [
            name,
            " and ".join(f"{rate:.3g}" for rate in others[name][1:]) or "0",
            str(len(times)),
            f"{1000 * median(times):.0f}",
            f"{1000 * latest[name]:.0f}",
            f"{latest[name] / share:.2f}",
        ]
        for name, times in seen.items()
    ]
    heads = [
        "beside",
        "its answers a second, by round",
        "requests",
        "TTFT p50, ms",
        "TTFT p95, ms",
        "p95 over that beside its share",
    ]
    return report(f"A quiet team beside others, {model}", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12, help="seconds per case and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per answer")
    args = parser.parse_args()
    # One core. The other one is for the routers and clients, whose own wait for a core would hide the effect.
    with running(DRAY_MODEL__SOURCE=args.model, DRAY_MODEL__CORES_PER_REPLICA="1") as service:
        print(asyncio.run(compare(service, args)))


if __name__ == "__main__":
    main()
