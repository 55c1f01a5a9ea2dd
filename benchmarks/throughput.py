"""Tokens/s through HTTP, compared with the same engine process without HTTP, Ray and router.

Both run in turn on the same cores; the service is idle while the bare engine is measured. Medians of the rounds.
"""

import argparse
import asyncio
import os
import secrets
import time
from statistics import median

from benchmarks.service import report, running
from benchmarks.streams import streams
from cluster.models.folder import open_model
from cluster.settings import ModelSettings, default_models_dir
from deployments.common.messages import EngineRequest, Sampling
from deployments.engine.model import config_for
from deployments.engine.process import EngineProcess


async def engine_streams(engine: EngineProcess, streams: int, *, rounds: int, prompt: int, tokens: int) -> float:
    """Tokens/s of the same load, sent directly to the engine."""
    made = 0

    async def lane() -> None:
        nonlocal made
        for _ in range(rounds):
            ids = [10 + secrets.randbelow(1000) for _ in range(prompt)]
            async for some in engine.generate(EngineRequest(ids, Sampling(tokens, ignore_eos=True))):
                made += len(some.ids)

    began = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(streams)))
    return made / (time.perf_counter() - began)


async def compare(args: argparse.Namespace) -> str:
    chosen = ModelSettings(source=args.model)
    model = open_model(chosen, default_models_dir())
    config = config_for(model, tuple(sorted(os.sched_getaffinity(0))))
    rows = []
    with running(DRAY_MODEL__SOURCE=args.model, DRAY_CACHE__ENABLED="false") as service:
        engine, _ = await EngineProcess.start(config, timeout_s=300)
        lengths = {"prompt": args.prompt, "tokens": args.tokens}
        for number in args.streams:
            through, alone = [], []
            for _ in range(args.rounds):
                # In a thread, because it runs its own event loop.
                one = await asyncio.to_thread(streams, service.url, number, each=args.each, **lengths)
                through.append(one.tokens_per_s)
                alone.append(await engine_streams(engine, number, rounds=args.each, **lengths))
            ratios = [one / other for one, other in zip(through, alone, strict=True)]
            rows.append([str(number), f"{median(through):.1f}", f"{median(alone):.1f}", f"{median(ratios):.3f}"])
        await engine.stop()
    heads = ["streams", "through HTTP, tokens/s", "engine alone, tokens/s", "ratio"]
    return report(f"Throughput, {model.name}", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3, help="rounds")
    parser.add_argument("--each", type=int, default=1, help="requests per stream and round")
    parser.add_argument("--prompt", type=int, default=64, help="prompt length in tokens")
    parser.add_argument("--tokens", type=int, default=64)
    print(asyncio.run(compare(parser.parse_args())))


if __name__ == "__main__":
    main()
