"""Decoding of one stream, compared with the limit of this machine's memory: each token reads all weights once.

As many threads as the engine has cores read one block of 2 GiB. The engine decodes alone and through HTTP in
alternating rounds. The embedding table does not count: a token reads one row of it.
"""

import argparse
import asyncio
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy

from benchmarks.service import report, running
from benchmarks.streams import streams
from benchmarks.throughput import engine_streams
from cluster.models.folder import open_model
from cluster.models.identity import WEIGHTS_FILE
from cluster.settings import ModelSettings, default_models_dir
from deployments.engine.model import config_for
from deployments.engine.process import EngineProcess

_BLOCK_BYTES = 2 * 2**30


def read_rate(block: numpy.ndarray, threads: int) -> float:
    """Bytes per second that this many threads read together; the best of several runs, because it is a limit."""
    parts = numpy.array_split(block, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            began = time.perf_counter()
            list(pool.map(numpy.max, parts))
            best = max(best, block.nbytes / (time.perf_counter() - began))
    return best


def bytes_a_token(folder: Path) -> int:
    """Bytes that one token reads: all weights except the embedding table, one byte each."""
    shape = json.loads((folder / "config.json").read_text())
    table = 0 if shape.get("tie_word_embeddings") else shape["vocab_size"] * shape["hidden_size"]
    return (folder / WEIGHTS_FILE).stat().st_size - int(table)


async def measure(args: argparse.Namespace) -> str:
    model = open_model(ModelSettings(source=args.model), default_models_dir())
    cores = sorted(os.sched_getaffinity(0))
    block = numpy.ones(_BLOCK_BYTES // 8, dtype=numpy.int64)
    needed = bytes_a_token(model.folder)
    lengths = {"prompt": 32, "tokens": args.tokens}
    limits, alone, through = [], [], []
    with running(DRAY_MODEL__SOURCE=args.model, DRAY_CACHE__ENABLED="false") as service:
        engine, _ = await EngineProcess.start(config_for(model, tuple(cores)), timeout_s=300)
        for _ in range(args.rounds):
            limits.append(read_rate(block, len(cores)) / needed)
            alone.append(await engine_streams(engine, 1, rounds=1, **lengths))
            limits.append(read_rate(block, len(cores)) / needed)
            # In a thread, because it runs its own event loop.
            one = await asyncio.to_thread(streams, service.url, 1, each=1, **lengths)
            through.append(one.tokens_per_s)
        await engine.stop()
    limit = max(limits)
    rows = [["memory's limit", f"{limit:.1f}", "1"]]
    rows += [
        [name, f"{median(rates):.1f}", f"{median(rates) / limit:.3f}"]
        for name, rates in (("engine alone", alone), ("through HTTP", through))
    ]
    said = f"{limit * needed / 1e9:.1f} GB/s by {len(cores)} threads, {needed / 1e9:.2f} GB a token"
    return report(f"One stream beside memory, {model.name} ({said})", ["", "tokens/s", "of the limit"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    print(asyncio.run(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
