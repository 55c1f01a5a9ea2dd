"""Tokens/s through HTTP, compared with llama.cpp's server on the same cores.

The weights have the same shape: INT8 in Dray, Q8_0 in llama.cpp.

Build `llama-server` for this machine (`cmake -B build -DGGML_NATIVE=ON; cmake --build build -t llama-server`), and
generate its weights: `pip install gguf` in a separate environment, `python benchmarks/random_gguf.py MODEL FILE`. The
servers are measured in turn, each while the other is idle; figures are medians of the rounds.
"""

import argparse
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx

from benchmarks.service import report, running
from benchmarks.streams import streams
from cluster.ports import free_port

_CONTEXT = 1024
"""Context tokens per slot."""
_START_S = 120.0


@contextmanager
def llama(command: str, file: Path, most: int) -> Iterator[str]:
    """Runs llama.cpp's server with a slot for each stream; yields its URL."""
    port, cores = free_port(), len(os.sched_getaffinity(0))
    chosen = {"-m": file, "-t": cores, "-tb": cores, "-np": most, "-c": most * _CONTEXT, "--port": port}
    arguments = [str(part) for option in chosen.items() for part in option]
    process = subprocess.Popen([command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _START_S
        while not _healthy(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("llama.cpp's server did not start")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def _healthy(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def compare(args: argparse.Namespace) -> str:
    rows = []
    with (
        running(DRAY_MODEL__SOURCE=args.model, DRAY_CACHE__ENABLED="false") as service,
        llama(args.llama, args.file, max(args.streams)) as other,
    ):
        for number in args.streams:
            ours, theirs = list[float](), list[float]()
            for _ in range(args.rounds):
                for url, rates in ((service.url, ours), (other, theirs)):
                    one = streams(url, number, each=args.each, prompt=args.prompt, tokens=args.tokens)
                    rates.append(one.tokens_per_s)
            ratio = median(one / other for one, other in zip(ours, theirs, strict=True))
            rows.append([str(number), f"{median(ours):.1f}", f"{median(theirs):.1f}", f"{ratio:.2f}"])
    heads = ["streams", "Dray, tokens/s", "llama.cpp's server, tokens/s", "ratio"]
    return report(f"Beside llama.cpp, {Path(args.model).name}", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a Qwen2 model")
    parser.add_argument("--llama", required=True, help="path of llama-server")
    parser.add_argument("--file", type=Path, required=True, help="GGUF file of its weights")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3, help="rounds")
    parser.add_argument("--each", type=int, default=1, help="requests per stream and round")
    parser.add_argument("--prompt", type=int, default=64, help="prompt length in tokens")
    parser.add_argument("--tokens", type=int, default=64)
    print(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
