"""How many cores a replica should have: one replica of more and more cores, and the same cores divided among replicas.

Forward passes alone, by the program behind `dray tune`: streams that decode, and a prompt. It needs all the cores to
itself, and the memory of as many replicas as share them.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.service import report
from cluster.cores import lease_cores, processor_name, usable_cores
from cluster.models.folder import ServedModel, open_model
from cluster.settings import ModelSettings, Settings, default_models_dir
from cluster.tuning import splits
from cluster.tuning.choice import PROMPT_TOKENS, STREAMS, Timed
from cluster.tuning.tasks import TimeTask, run_task
from cluster.tuning.variants import VARIANTS, Variant, possible

_SECONDS = 4.0


def alone(
    model: ServedModel, models_dir: Path, leases: Path, sizes: Sequence[int], variants: Sequence[Variant]
) -> Iterator[list[str]]:
    """A row for each number of cores and variant that works with it: tokens/s of each load."""
    for cores in sizes:
        with lease_cores(cores, leases, owner="replica sizes") as lease:
            for variant in variants:
                if variant not in possible(model, cores):
                    continue
                found = run_task(model, models_dir, lease, TimeTask(variant, PROMPT_TOKENS))
                if isinstance(found, Timed):
                    rates = (tokens / spent for (_, tokens), spent in zip(found.loads, found.seconds, strict=True))
                    yield [str(cores), str(variant), *(f"{rate:.1f}" for rate in rates), found.multiplications]


def together(
    model: ServedModel, models_dir: Path, leases: Path, cores: int, numbers: Sequence[int], variant: Variant
) -> Iterator[list[str]]:
    """A row for each number of replicas that divide these cores: tokens/s of all together."""
    with lease_cores(cores, leases, owner="replica sizes") as lease:
        for replicas in numbers:
            if found := splits.measure_split(model, models_dir, lease, variant, replicas, _SECONDS):
                rates = [f"{found.decoded_tokens_per_s:.1f}", f"{found.prompt_tokens_per_s:.0f}"]
                yield [str(replicas), str(found.cores), str(found.streams), *rates]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--sizes", type=int, nargs="+", help="cores of one replica (default: 1, half and all)")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2], help="that share all cores")
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=["weight-only", "groups-128", "fused-mlp"]
    )
    args = parser.parse_args()
    models_dir, leases = default_models_dir(), Settings().core_lock_dir
    model = open_model(ModelSettings(source=args.model), models_dir)
    cores = usable_cores().count
    variants = [VARIANTS[name] for name in args.variants]
    shared = next(
        variant for variant in reversed(variants) if variant in possible(model, max(1, cores // max(args.replicas)))
    )
    sizes = args.sizes or sorted({1, max(1, cores // 2), cores})
    where = f"{model.name}, {processor_name()}"
    heads = [*(f"{count} streams, tokens/s" for count in STREAMS), "prompt, tokens/s", "operations that multiply"]
    rows = list(alone(model, models_dir, leases, sizes, variants))
    print(report(f"One replica by its cores, {where}", ["cores", "variant", *heads], rows))
    rows = list(together(model, models_dir, leases, cores, args.replicas, shared))
    heads = ["replicas", "cores each", "streams in all", "tokens/s", "prompt tokens/s"]
    print(report(f"{cores} cores divided, {shared}, {where}", heads, rows))


if __name__ == "__main__":
    main()
