"""What a plan for a large service takes: seconds and memory; and how far its sample is from the whole service.

The load is a day of requests whose rate follows office hours, described or as a trace of one line per request. The
sample's error is measured at a size where all replicas can be simulated.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.service import report
from cluster.bench.lengths import parse_lengths
from cluster.plan.load import DAY_S, SHAPES, UserLoad
from cluster.plan.profile import fit, read_profile
from cluster.plan.search import Planner, Trial, UserDemand
from cluster.plan.service import ServiceModel

PROFILE = Path(__file__).with_name("m15.steps.json")
PROMPT, REPEATED, PEAK = "lognormal:120:0.5", 0.3, 2.5
_OPTIONS = ("--profile", str(PROFILE), "--ttft", "3", "--tpot", "1")
_MAX_S, _MAX_MIB = 60.0, 2048


def load(requests: float, output: str) -> UserLoad:
    """A day of so many requests, of 100 users for each."""
    lengths = parse_lengths(PROMPT), parse_lengths(output)
    return UserLoad(requests / 100, 100 / 24, *lengths, REPEATED, PEAK, SHAPES["office"])


def described(requests: float, output: str) -> list[str]:
    """The same as options of `dray plan`."""
    users = ["--users", str(requests / 100), "--per-hour", str(100 / 24), "--peak", str(PEAK)]
    return [*users, "--repeated", str(REPEATED), "--prompt", PROMPT, "--output", output]


def write_trace(requests: float, output: str, path: Path) -> None:
    """The same as a file, a line for each request."""
    with path.open("w") as file:
        for one in load(requests, output).requests(0, DAY_S, 1.0, 0):
            file.write(f'{{"at":{one.at:.3f},"prompt":{one.prompt},"output":{one.output},"question":{one.question}}}\n')


def planned(name: str, arguments: list[str]) -> tuple[list[str], float, float]:
    """Runs `dray plan`; gives a row, with its seconds and MiB."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [sys.executable, "-m", "cluster.cli", "plan", *_OPTIONS, *arguments, "--json", out.name]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            raise RuntimeError(f"dray plan ended with status {status}")
        plan = json.loads(Path(out.name).read_text())
    processor, memory, error = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, plan["peak"]["sample_error"]
    row = [name, f"{plan['day']['requests']:,.0f}", f"{plan['needed']['replicas']:,}", f"{seconds:.0f}"]
    told = f"{error['ttft']:+.0%}, {error['tpot']:+.0%} ({error['replicas']})" if error else "none"
    return [*row, f"{processor:.0f}", f"{memory:,.0f}", told], processor, memory


def sampled(replicas: int, requests: float, output: str, sample: int) -> list[str]:
    """A row: the sample beside the whole service of so many replicas."""
    measured = read_profile(PROFILE)
    planner = Planner(UserDemand(load(requests, output), 0), measured.engine, fit(measured.points), ServiceModel())
    small = replace(planner, sample=sample, tried={}).peak(replicas)
    # The same stretch of time.
    whole = replace(planner, sample=replicas, requests=planner.requests * replicas // sample, tried={}).peak(replicas)

    def times(trial: Trial) -> list[float]:
        return [trial.measured.ttft.at(0.5), trial.measured.ttft.at(0.95), trial.measured.tpot.at(0.95)]

    pairs = zip(times(small), times(whole), strict=True)
    return [f"{sample} of {replicas}", f"{whole.measured.requests:,}", *(f"{a:.3f}, {b:.3f}" for a, b in pairs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=float, default=1e7, help="a day")
    parser.add_argument("--output", default="lognormal:180:0.5", help="tokens of an answer, as for dray plan")
    parser.add_argument("--trace", action="store_true", help="as a trace, too")
    parser.add_argument("--whole", type=int, default=0, help="compare the sample with a service of so many replicas")
    parser.add_argument("--each", type=float, default=10_000, help="with --whole: requests a day for each replica")
    args = parser.parse_args()
    if args.whole:
        rows = [sampled(args.whole, args.each * args.whole, args.output, size) for size in (16, 32)]
        heads = ["replicas simulated", "requests of the whole", "TTFT p50, sample and whole, s", "TTFT p95", "TPOT p95"]
        print(report(f"A sample beside all of {args.whole} replicas", heads, rows))
        return
    rows, used = [], []
    with tempfile.TemporaryDirectory() as folder:
        loads = {"described": described(args.requests, args.output)}
        if args.trace:
            trace = Path(folder) / "trace.jsonl"
            write_trace(args.requests, args.output, trace)
            loads["trace"] = ["--trace", str(trace)]
        for name, arguments in loads.items():
            row, seconds, memory = planned(name, arguments)
            rows.append(row)
            used.append((seconds, memory))
    heads = ["load", "requests a day", "replicas", "seconds", "of the processor", "memory, MiB"]
    print(report("Planning a large service", [*heads, "error of the sample: TTFT, TPOT p95 (beside replicas)"], rows))
    if any(seconds > _MAX_S or memory > _MAX_MIB for seconds, memory in used):
        sys.exit(f"Beyond the limits: {_MAX_S:.0f} s of the processor, {_MAX_MIB} MiB.")


if __name__ == "__main__":
    main()
