"""What it costs a router to choose a replica, and to remember what the replicas hold, as their number grows.

Each conversation starts with one of the system prompts and asks a few times. Every replica runs a number of streams.
A choice is timed from a request's token ids to the replica and back to the end of the attempt: with the hashing of the
prompt, which takes the same for any number of replicas, and without it; the times are of the processor, so that other
work on the machine does not count. The memory is what the process has grown by,
for all that the router keeps; each size runs in a process of its own.
"""

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from statistics import median, quantiles

import psutil

from benchmarks.service import report
from deployments.common.messages import EngineRequest, ReplicaStats, Sampling
from deployments.common.prefix import BLOCK_TOKENS, block_keys
from deployments.routing.registry import EngineReplicas

_MAX_CHOICE_S = 300e-6
_MAX_MEMORY = 64 * 2**20
_STATS = ReplicaStats(300.0, 65_536)


def prompts(args: argparse.Namespace) -> Iterator[list[int]]:
    """The prompts of all turns, in the order in which they come."""
    systems = [[1000 * number + 7] * args.system for number in range(args.systems)]
    begun: deque[tuple[int, int]] = deque()
    for number in range(args.conversations):
        begun.append((number, 1))
        # A conversation goes on after a thousand others have begun.
        while begun and (begun[0][0] + 1000 * begun[0][1] <= number or number + 1 == args.conversations):
            conversation, turn = begun.popleft()
            own = [200_000 + conversation] * (args.turn * turn)
            yield systems[conversation % args.systems] + own
            if turn < args.turns:
                begun.append((conversation, turn + 1))


class Router:
    """One router's records of so many replicas, with streams that run."""

    def __init__(self, replicas: int, streams: int) -> None:
        self.replicas = EngineReplicas("router")
        self.replicas.update({f"replica-{number:05}": _STATS for number in range(replicas)})
        self._running: deque[AbstractContextManager[int]] = deque()
        self._streams = replicas * streams

    def ask(self, prompt: list[int]) -> None:
        """Chooses a replica for a request, which runs until enough others have come."""
        attempt = self.replicas.attempt()
        request = EngineRequest(prompt, Sampling(300), attempt_id=attempt.__enter__())
        name = self.replicas.choose(request, self.replicas.states)[0]
        self.replicas.probe_acked(name)
        self.replicas.accepted(request, name)
        self.replicas.record_tokens(request.attempt_id, 1)
        self._running.append(attempt)
        if len(self._running) > self._streams:
            self._running.popleft().__exit__(None, None, None)


def measure(replicas: int, args: argparse.Namespace) -> tuple[list[str], float, int]:
    """A row of the table, with the median of a choice in seconds and the memory in bytes."""
    before = psutil.Process().memory_info().rss
    router, seconds = Router(replicas, args.streams), deque[float](maxlen=args.timed)
    for prompt in prompts(args):
        started = time.thread_time()
        router.ask(prompt)
        seconds.append(time.thread_time() - started)
    memory = psutil.Process().memory_info().rss - before
    hashing = median(map(_hashing, islice(prompts(args), 500)))
    prefixes = router.replicas.states.prefixes
    figures = [1e6 * median(seconds), 1e6 * quantiles(seconds, n=100)[-1], 1e6 * hashing]
    told = [f"{replicas:,}", *(f"{figure:,.0f}" for figure in figures), f"{memory / 2**20:.0f}"]
    return [*told, f"{prefixes.memory / 2**20:.0f}", f"{prefixes.blocks:,}"], median(seconds), memory


def _hashing(prompt: list[int]) -> float:
    started = time.thread_time()
    block_keys(prompt)
    return time.thread_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--systems", type=int, default=20, help="number of system prompts")
    parser.add_argument("--system", type=int, default=16 * BLOCK_TOKENS, help="tokens of a system prompt")
    parser.add_argument("--turn", type=int, default=6 * BLOCK_TOKENS, help="tokens that a turn adds")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--conversations", type=int, default=100_000)
    parser.add_argument("--streams", type=int, default=16, help="of each replica")
    parser.add_argument("--timed", type=int, default=20_000, help="last choices that count")
    args = parser.parse_args()
    rows, worst_s, most = [], 0.0, 0
    for replicas in args.replicas:
        with ProcessPoolExecutor(1) as alone:
            row, seconds, memory = alone.submit(measure, replicas, args).result()
        rows.append(row)
        worst_s, most = max(worst_s, seconds), max(most, memory)
    heads = ["replicas", "choice p50, µs", "p99, µs", "of it hashing, µs"]
    heads += ["memory, MiB", "of it prompts, as estimated", "blocks kept"]
    print(report(f"Choices over {args.conversations:,} conversations", heads, rows))
    if worst_s > _MAX_CHOICE_S or most > _MAX_MEMORY:
        sys.exit(f"Beyond the limits: {_MAX_CHOICE_S * 1e6:.0f} µs a choice, {_MAX_MEMORY >> 20} MiB.")


if __name__ == "__main__":
    main()
