"""The ways to multiply, in turn in one process, over how engines multiplied before there was `model.precision`.

Forward passes without scheduling and sampling, of streams that decode after 64 tokens and of prompts alone. Ratios are
medians of those of the rounds, so that a machine that changes its speed changes all sides. All variants are loaded at
once, so the 1.5 B model takes 2 GB of memory for each, and twice that where a variant has two graphs.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import truediv
from statistics import geometric_mean, median

from benchmarks.service import report
from cluster.cores import processor_flags, processor_name
from cluster.models.folder import ServedModel, open_model
from cluster.settings import BUNDLED, ModelSettings, default_models_dir
from cluster.tuning.variants import GROUPS_32, GROUPS_128, VARIANTS, WEIGHT_ONLY, Variant, possible
from deployments.engine.model import config_for
from deployments.tuning.loads import LoadedVariant, in_turn

_BEFORE = Variant("before", "own format, groups of 128", "auto", 128)
_INT8 = ("amx_int8", "avx512_vnni", "avx_vnni", "avx2")


def sides(
    model: ServedModel, converted: ServedModel | None, cpus: tuple[int, ...], names: Sequence[str]
) -> Iterator[tuple[str, LoadedVariant]]:
    """The chosen variants by name, the one that the others are compared with first."""
    for variant in (_BEFORE, WEIGHT_ONLY, GROUPS_32, GROUPS_128):
        if variant is _BEFORE or variant.name in names:
            yield variant.name, LoadedVariant(config_for(model, cpus), variant)
    if converted is not None:
        for variant in possible(converted, len(cpus)):
            if variant.name in names and variant != WEIGHT_ONLY:
                yield f"{variant.name}, converted", LoadedVariant(config_for(converted, cpus), variant)


def loads(
    loaded: Sequence[LoadedVariant], streams: Sequence[int], prompts: Sequence[int]
) -> Iterator[tuple[str, int, list[Callable[[], float]]]]:
    """Each load: its name, its tokens, and what computes it by each variant."""
    for count in streams:
        for each in loaded:
            each.start(count)
        yield ("1 stream" if count == 1 else f"{count} streams"), count, [each.decode for each in loaded]
    for length in prompts:
        yield f"prompt of {length}", length, [partial(each.prompt, length, length) for each in loaded]


def compare(args: argparse.Namespace) -> str:
    def opened(source: str) -> ServedModel:
        return open_model(ModelSettings(source=source, max_num_seqs=max(args.streams)), default_models_dir())

    cpus = tuple(sorted(os.sched_getaffinity(0)))[: args.cores]
    os.sched_setaffinity(0, cpus)
    model = opened(args.model)
    loaded = dict(sides(model, opened(args.converted) if args.converted else None, cpus, args.variants))
    rows: list[list[str]] = []
    ratios = {name: list[float]() for name in list(loaded)[1:]}
    for name, tokens, works in loads(list(loaded.values()), args.streams, args.prompts):
        before, *others = in_turn(works, args.rounds)
        found = [median(map(truediv, before, own)) for own in others]
        for all_, ratio in zip(ratios.values(), found, strict=True):
            all_.append(ratio)
        rows.append([name, f"{tokens / median(before):.1f}", *(f"{ratio:.2f}" for ratio in found)])
    rows.append(["geometric mean", "", *(f"{geometric_mean(each):.2f}" for each in ratios.values())])
    int8 = next((flag for flag in _INT8 if flag in processor_flags()), "no INT8")
    where = f"{len(cpus)} cores of {processor_name()}, {int8}"
    kernels = [[name, each.multiplications] for name, each in loaded.items()]
    return "\n".join(
        [
            report(f"Times as fast, {model.name}, {where}", ["", "before, tokens/s", *ratios], rows),
            report("Operations that multiply by weights, in the last prompt", ["", ""], kernels),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--converted", help="the same model with symmetric weights (`dray models convert`)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="only some, for memory")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--rounds", type=int, default=9)
    print(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
