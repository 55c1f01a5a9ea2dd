"""Tokens a second through HTTP beside llama.cpp's server, on the same cores, with weights of the same shape: INT8 here,
Q8_0 there.

`python -m venv L && L/bin/pip install gguf xllamacpp`, then `--llama L/bin/python`. They are asked in turn, each
while the other is idle; medians of the rounds.
"""

import argparse
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.service import report, running
from benchmarks.streams import streams
from cluster.models.folder import open_model
from cluster.settings import ModelSettings, default_models_dir


@contextmanager
def llama(python: str, model_dir: Path, file: Path, most: int) -> Iterator[str]:
    """Runs llama.cpp's server; gives its URL."""
    own = [python, str(Path(__file__).with_name("llama_server.py")), str(model_dir), str(file)]
    cores = ["--cores", str(len(os.sched_getaffinity(0))), "--streams", str(most)]
    process = subprocess.Popen([*own, *cores], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        url = next((line.strip() for line in process.stdout if line.startswith("http")), "")
        if not url:
            raise RuntimeError("llama.cpp's server did not start")
        yield url
    finally:
        process.kill()
        process.wait()


def compare(args: argparse.Namespace) -> str:
    model = open_model(ModelSettings(source=args.model), default_models_dir())
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        running(DRAY_MODEL__SOURCE=args.model, DRAY_CACHE__ENABLED="false") as service,
    ):
        file = args.file or Path(folder) / "model.gguf"
        with llama(args.llama, model.folder, file, max(args.streams)) as other:
            for number in args.streams:
                ours, theirs = list[float](), list[float]()
                for _ in range(args.rounds):
                    for url, rates in ((service.url, ours), (other, theirs)):
                        one = streams(url, number, each=args.each, prompt=args.prompt, tokens=args.tokens)
                        rates.append(one.tokens_per_s)
                ratio = median(one / other for one, other in zip(ours, theirs, strict=True))
                rows.append([str(number), f"{median(ours):.1f}", f"{median(theirs):.1f}", f"{ratio:.2f}"])
    heads = ["streams", "Dray, tokens/s", "llama.cpp's server, tokens/s", "ratio"]
    return report(f"Beside llama.cpp, {model.name}", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model of Qwen2's shape")
    parser.add_argument("--llama", required=True, help="the Python of the environment with gguf and xllamacpp")
    parser.add_argument("--file", type=Path, help="of its weights, to keep them; made where there is none")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3, help="times that both are measured in turn")
    parser.add_argument("--each", type=int, default=1, help="requests of each stream in a round")
    parser.add_argument("--prompt", type=int, default=64, help="prompt length in tokens")
    parser.add_argument("--tokens", type=int, default=64)
    print(compare(parser.parse_args()))


if __name__ == "__main__":
    main()
