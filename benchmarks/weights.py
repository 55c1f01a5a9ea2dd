"""Effect of the weight format: one model in INT8, INT4 and FP16, in the engine alone, in turn on the same cores.

`dray models random M8 --like deepseek-r1-distill-qwen-1.5b`, the same with `--weight int4` and `--weight fp16`, then
`--models M8 M4 M16`. Quality is measured on the real model: `dray models compare`.
"""

import argparse
import asyncio
import os
from collections import defaultdict
from statistics import median

from benchmarks.memory import pss_mb
from benchmarks.service import report
from benchmarks.throughput import engine_streams
from cluster.models.folder import ServedModel, open_model
from cluster.models.identity import WEIGHTS_FILE
from cluster.settings import ModelSettings, default_models_dir
from deployments.engine.model import config_for
from deployments.engine.process import EngineProcess

_STREAMS = (1, 4, 16)
_PROMPT = 512


async def measured(model: ServedModel, tokens: int) -> dict[str, float]:
    """Measures a separate engine on all cores."""
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    engine, ready = await EngineProcess.start(config_for(model, cpus), timeout_s=600)
    try:
        seen = {"ready, s": ready.load_s + ready.warmup_s}
        each = await engine_streams(engine, 1, rounds=3, prompt=_PROMPT, tokens=1)
        seen["prompt tokens/s"] = each * _PROMPT
        for streams in _STREAMS:
            rate = await engine_streams(engine, streams, rounds=1, prompt=16, tokens=tokens)
            seen[f"tokens/s, {streams} stream{'s' * (streams > 1)}"] = rate
        seen["PSS, MiB"] = pss_mb(engine.pid)
    finally:
        await engine.stop()
    return seen


def compare(args: argparse.Namespace) -> str:
    models = [open_model(ModelSettings(source=one), default_models_dir()) for one in args.models]
    seen: dict[str, dict[str, list[float]]] = {model.name: defaultdict(list) for model in models}
    for _ in range(args.rounds):
        for model in models:
            for name, figure in asyncio.run(measured(model, args.tokens)).items():
                seen[model.name][name].append(figure)
    base = {name: median(figures) for name, figures in seen[models[0].name].items()}
    rows = []
    for model in models:
        size = (model.folder / WEIGHTS_FILE).stat().st_size / 2**20
        cells = [f"{median(one):.4g} ({median(one) / base[name]:.2f})" for name, one in seen[model.name].items()]
        rows.append([model.name, f"{size:.0f}", *cells])
    return report("Weight formats (in brackets: over the first's)", ["model", "weight file, MiB", *base], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", required=True, help="model folders; the others are compared with the first"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48, help="tokens per answer")
    print(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
