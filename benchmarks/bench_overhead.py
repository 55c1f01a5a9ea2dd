"""CPU and timing error of the load generator, against a server that emits tokens at a fixed rate.

CPU is that of the generator's process. The server records when it sent each token; the difference is the error.
"""

import argparse
import time

from benchmarks.emitter import account, emitting
from benchmarks.service import report
from benchmarks.streams import measured
from cluster.bench.lengths import Lengths
from cluster.bench.load import Load, RunLength
from cluster.bench.results import Distribution
from cluster.bench.workload import Workload

_SHARES = (0.5, 0.95, 0.99)


def checked(args: argparse.Namespace) -> str:
    rows = []
    for streams in args.streams:
        with emitting(args.first, args.gap) as url:
            workload = Workload(Lengths(100, 100), Lengths(args.tokens, args.tokens))
            cpu, began = time.process_time(), time.perf_counter()
            one = measured(url, Load("concurrency", streams), RunLength(args.seconds, 0, 1), workload)
            cpu, took = time.process_time() - cpu, time.perf_counter() - began
            told = account(url)
            tokens = sum(asked["tokens"] for asked in told["asked"])
            errors = []
            for mine, its in ((one.ttft, told["ttft"]), (one.tpot, told["tpot"])):
                true = Distribution()
                for seconds in its:
                    true.add(seconds)
                errors.append("/".join(f"{1000 * (mine.at(share) - true.at(share)):.2f}" for share in _SHARES))
            rows.append(
                [
                    str(streams),
                    f"{one.tokens_per_s:.0f}",
                    f"{1e6 * cpu / tokens:.0f}",
                    f"{100 * cpu / took:.0f} %",
                    *errors,
                ]
            )
    heads = ["streams", "tokens/s", "CPU of the client a token, µs", "of a core"]
    heads += ["error of TTFT p50/p95/p99, ms", "error of TPOT p50/p95/p99, ms"]
    return report("The load generator itself", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--first", type=float, default=0.05, help="seconds until the first token")
    parser.add_argument("--gap", type=float, default=0.02, help="seconds between tokens")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10)
    print(checked(parser.parse_args()))


if __name__ == "__main__":
    main()
