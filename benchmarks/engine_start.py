"""Start time of an engine: with a cold disk, a warm page cache, beside another replica, and with a compile cache.

Each start is a separate process, pinned like a replica's. Memory is measured after warm-up: the mapped pages of the
weight file, all other memory, and how much of those pages generation reads again after the kernel has dropped them.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.memory import pss_mb, weights_and_rest_mb
from benchmarks.service import report
from cluster.models.folder import ServedModel, open_model
from cluster.models.identity import WEIGHTS_FILE
from cluster.settings import ModelSettings, default_models_dir
from deployments.common.messages import EngineConfig, EngineRequest, Ready, Sampling
from deployments.engine.model import Chunk, PagedModel, config_for
from deployments.engine.process import EngineProcess

_CACHES: dict[str, dict[str, str]] = {
    "no compile cache": {},
    "compile cache": {"CACHE_MODE": "OPTIMIZE_SPEED"},
    "compile cache, OPTIMIZE_SIZE": {"CACHE_MODE": "OPTIMIZE_SIZE"},
}


def forget_pages(model: ServedModel) -> None:
    """Drops the weight file from the page cache, as after a reboot."""
    with (model.folder / WEIGHTS_FILE).open("rb") as weights:
        os.fsync(weights.fileno())
        os.posix_fadvise(weights.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def start(config: EngineConfig) -> tuple[EngineProcess, Ready, float]:
    """A started engine, its report, and the seconds until it was ready."""
    began = time.perf_counter()
    engine, ready = await EngineProcess.start(config, timeout_s=600)
    return engine, ready, time.perf_counter() - began


async def starts(model: ServedModel, rounds: int) -> tuple[str, str]:
    """Start times, and the memory of one replica and of two."""
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    half = max(1, len(cpus) // 2)
    seen: dict[str, list[tuple[float, Ready]]] = {"cold disk": [], "warm page cache": [], "second on the node": []}
    memory: list[list[str]] = []
    for round_ in range(rounds):
        forget_pages(model)
        for case in ("cold disk", "warm page cache"):
            engine, ready, seconds = await start(config_for(model, cpus))
            seen[case].append((seconds, ready))
            await engine.stop()
        first, _, _ = await start(config_for(model, cpus[:half]))
        second, ready, seconds = await start(config_for(model, cpus[half:]))
        seen["second on the node"].append((seconds, ready))
        if round_ == 0:
            memory = [await _memory(name, one) for name, one in (("first", first), ("second", second))]
        await first.stop()
        await second.stop()
    rows = [
        [
            case,
            f"{median(seconds for seconds, _ in runs):.2f}",
            f"{median(ready.load_s for _, ready in runs):.2f}",
            f"{median(ready.warmup_s for _, ready in runs):.2f}",
        ]
        for case, runs in seen.items()
    ]
    heads = ["start", "process to ready, s", "of it load, s", "of it warm-up, s"]
    times = report(f"Engine start, {model.name}", heads, rows)
    heads = ["replica of two", "PSS MiB", "weight file mapped MiB", "all else MiB", "weight file after 64 more tokens"]
    return times, report(f"Memory of two replicas on a node, {model.name}", heads, memory)


async def _memory(name: str, engine: EngineProcess) -> list[str]:
    pss, (weights, rest) = pss_mb(engine.pid), weights_and_rest_mb(engine.pid)
    async for _ in engine.generate(EngineRequest(list(range(100, 200)), Sampling(max_tokens=64, ignore_eos=True))):
        pass
    after, _ = weights_and_rest_mb(engine.pid)
    return [name, f"{pss:.0f}", f"{weights:.0f}", f"{rest:.0f}", f"{after:.0f}"]


def compile_caches(model: ServedModel, rounds: int) -> str:
    """Load and first inference with and without a filled compile cache, with a warm page cache."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in _CACHES}
    folders = {name: tempfile.mkdtemp(prefix="dray-cc-") for name in _CACHES}
    sizes = {}
    try:
        for round_ in range(rounds + 1):
            for name, properties in _CACHES.items():
                used = {**properties, "CACHE_DIR": folders[name]} if properties else {}
                times = _load(model, used)
                if round_:  # the first run fills the caches
                    seen[name].append(times)
        for name, folder in folders.items():
            sizes[name] = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    finally:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
    rows = [
        [
            name,
            f"{median(run['load'] for run in runs):.2f}",
            f"{median(run['first'] for run in runs):.2f}",
            f"{median(run['load'] + run['first'] for run in runs):.2f}",
            f"{sizes[name] / 1e6:.1f}",
        ]
        for name, runs in seen.items()
    ]
    heads = ["", "load, s", "first inference, s", "both, s", "cache on disk, MB"]
    return report(f"Compile cache, {model.name}", heads, rows)


def _load(model: ServedModel, properties: dict[str, str]) -> dict[str, float]:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine_start", "--load", str(model.folder), json.dumps(properties)],
        capture_output=True,
        check=True,
    )
    times: dict[str, float] = json.loads(ended.stdout)
    return times


def _load_here(folder: str, properties: dict[str, Any]) -> None:
    """Runs in a separate process: loads the model as the engine does, and computes a prompt."""
    began = time.perf_counter()
    model = open_model(ModelSettings(source=folder), default_models_dir())
    paged = PagedModel(config_for(model, tuple(os.sched_getaffinity(0))), properties)
    loaded = time.perf_counter()
    paged.forward([Chunk(list(range(256)), 0, list(range(8)), 1)])
    json.dump({"load": loaded - began, "first": time.perf_counter() - loaded}, sys.stdout)


def main() -> None:
    if sys.argv[1:2] == ["--load"]:
        _load_here(sys.argv[2], json.loads(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="model to start")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model = open_model(ModelSettings(source=args.model), default_models_dir())
    print(*asyncio.run(starts(model, args.rounds)), compile_caches(model, args.rounds), sep="\n")


if __name__ == "__main__":
    main()
