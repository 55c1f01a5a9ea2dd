"""Predictions of `dray plan`, compared with a real Dray that gets the same requests at the same times.

The replica has one core; router and client have the other. Step times are measured before and after each load, because
a shared machine's speed changes. First, the overhead of router and network is measured with one request at a time; then
the loads are compared.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from benchmarks.service import Service, report, running
from benchmarks.streams import measured
from cluster.bench.client import Outcome
from cluster.bench.lengths import Lengths, parse_lengths
from cluster.bench.load import Load, RunLength
from cluster.bench.results import RunStats
from cluster.bench.workload import Conversation, Workload
from cluster.plan.load import TraceRequest
from cluster.plan.measure import measure as measure_steps
from cluster.plan.profile import Profile, StepTimes, fit, read_profile
from cluster.plan.service import Measurements, ServiceModel, simulate
from cluster.settings import ModelSettings, default_data_dir, default_models_dir

_SHARES = (0.5, 0.95)


def profile_of(args: argparse.Namespace) -> Profile:
    """Reads the given profile, or measures one now."""
    if args.profile and args.profile.is_file():
        return read_profile(args.profile)
    with tempfile.TemporaryDirectory() as leases:
        model, data_dir = ModelSettings(source=args.model), default_data_dir()
        for one in measure_steps(model, default_models_dir(), 1, Path(leases), data_dir):
            if isinstance(one, Profile):
                if args.profile:
                    args.profile.write_bytes(msgspec.json.encode(one))
                return one
    raise RuntimeError("nothing was measured")


def asked(
    service: Service, args: argparse.Namespace, load: Load, seconds: float
) -> tuple[RunStats, list[TraceRequest]]:
    """Runs the load; returns the results and the trace of the requests."""
    trace: list[TraceRequest] = []
    began = time.perf_counter()

    def on_done(one: Conversation, outcome: Outcome) -> None:
        at = outcome.began - began
        trace.append(TraceRequest(at, outcome.prompt, outcome.completion, one.question, one.session))

    seen = measured(
        service.url,
        load,
        RunLength(seconds, 0, 0),
        Workload(args.prompt, args.output, repeated=args.repeated),
        on_done=on_done,
        seed=args.seed,
    )
    return seen, sorted(trace, key=lambda one: one.at)


def overheads(service: Service, args: argparse.Namespace, times: StepTimes) -> tuple[float, float]:
    """Seconds that a running service adds to the engine's steps: before the first token, and per step."""
    alone = argparse.Namespace(**{**vars(args), "repeated": 0.0, "seed": args.seed + 1})
    seen, trace = asked(service, alone, Load("concurrency", 1), args.alone)
    prompt = sum(one.prompt for one in trace) / len(trace)
    output = sum(one.output for one in trace) / len(trace)
    step = times.decode(1, round(prompt), round(output)) / round(output)
    per_step = max(0.0, seen.tpot.at(0.5) - step)
    first = times.step(0, 0, round(prompt), round(prompt * prompt / 2))
    return max(0.0, seen.ttft.at(0.5) - first - per_step), per_step


def checked(args: argparse.Namespace) -> str:
    rows, errors = [], []
    with running(DRAY_MODEL__SOURCE=args.model, DRAY_MODEL__CORES_PER_REPLICA="1") as service:
        profile = profile_of(args)
        before, per_step = overheads(service, args, fit(profile.points))
        for rate in args.rates:
            seen, trace = asked(service, args, Load("rate", rate), args.seconds)
            earlier, profile = profile, profile_of(args)
            times = fit([*earlier.points, *profile.points])
            errors.append(times.error)
            window = Measurements()
            terms = ServiceModel(overhead_s=before, step_overhead_s=per_step)
            simulate(trace, profile.engine, times, 1, terms, lambda at, window=window: window)  # type: ignore[misc]
            cells = []
            for real, foretold in ((seen.ttft, window.ttft), (seen.tpot, window.tpot)):
                for share in _SHARES:
                    is_, said = real.at(share), foretold.at(share)
                    cells.append(f"{1000 * is_:.1f} / {1000 * said:.1f} ({100 * (said / is_ - 1):+.0f} %)")
            rows.append([f"{rate:g}", str(seen.ok), *cells])
            print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    heads = ["requests/s", "requests", *(f"{name} p{at}, ms" for name in ("TTFT", "TPOT") for at in (50, 95))]
    title = f"The planner's model beside the real thing, {profile.engine.model} (measured / foretold)"
    told = f"Router and network: {1000 * before:.1f} ms before the first token, {1000 * per_step:.2f} ms in each step; "
    return report(title, heads, rows) + f"\n{told}median error of the step times' fit: {100 * max(errors):.1f} %.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--profile", type=Path, help="file to read the profile from, or to write it to")
    parser.add_argument("--only-profile", action="store_true", help="only measure the profile")
    parser.add_argument("--rates", type=float, nargs="+", default=[4, 10, 16], help="requests per second")
    parser.add_argument("--seconds", type=float, default=30, help="seconds per load")
    parser.add_argument("--alone", type=float, default=10, help="seconds of the overhead measurement")
    parser.add_argument("--prompt", type=parse_lengths, default=Lengths(60, 180), help="prompt tokens")
    parser.add_argument("--output", type=parse_lengths, default=Lengths(32, 96), help="completion tokens")
    parser.add_argument("--repeated", type=float, default=0.0, help="share of repeated questions")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.only_profile:
        profile_of(args)
        return
    print(checked(args))


if __name__ == "__main__":
    main()
