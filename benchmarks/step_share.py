"""Where an engine's step goes: OpenVINO's forward pass, and Python around it, which plans, samples and keeps account.

Streams decode in this process: greedy ones, and ones that sample as DeepSeek-R1's makers advise. To choose among words
that are all about equally likely takes longer than among a model's. So logits of random weights are multiplied until
their entropy is that of a real model in doubt, 2 nats (`--entropy`); 0 leaves them as they are.
"""

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.engines import prompt
from benchmarks.service import report
from cluster.cores import processor_name
from cluster.models.folder import open_model
from cluster.settings import BUNDLED, ModelSettings, default_models_dir
from deployments.common.messages import Add, Cancel, EngineRequest, Sampling
from deployments.engine.engine import Engine
from deployments.engine.model import PagedModel, config_for

Logits = npt.NDArray[np.float32]
Inference = Callable[[Callable[[], bool] | None], Logits]

_PROMPT = 32
KINDS = {
    "greedy": Sampling(4000, ignore_eos=True),
    "temperature 0.6, top_p 0.95": Sampling(4000, temperature=0.6, top_p=0.95, ignore_eos=True),
}


class Timed:
    """Adds up the seconds of OpenVINO's inferences of a model, and brings its logits to this entropy, in nats."""

    def __init__(self, model: PagedModel, entropy: float) -> None:
        self.seconds = 0.0
        self._entropy = entropy
        self._factor: float | None = None if entropy else 1.0
        for graph in model._graphs:
            graph.infer = self._timed(graph.infer)  # type: ignore[assignment, method-assign]

    def _timed(self, infer: Inference) -> Inference:
        def timed(interrupt: Callable[[], bool] | None) -> Logits:
            began = time.perf_counter()
            logits = infer(interrupt)
            if self._factor is None:
                self._factor = factor_for(self._entropy, logits[-1])
            logits *= np.float32(self._factor)
            self.seconds += time.perf_counter() - began
            return logits

        return timed


def factor_for(entropy: float, logits: Logits) -> float:
    """By what these logits of one token are to be multiplied so that their entropy is this one, in nats."""
    low, high = 0.0, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        weights = np.exp(middle * (logits.astype(np.float64) - logits.max()))
        weights /= weights.sum()
        low, high = (middle, high) if -(weights * np.log(weights + 1e-300)).sum() > entropy else (low, middle)
    return high


def measure(args: argparse.Namespace) -> str:
    model = open_model(ModelSettings(source=args.model), default_models_dir())
    config = config_for(model, tuple(sorted(os.sched_getaffinity(0))))
    engine = Engine(msgspec.structs.replace(config, guess_tokens=False))
    engine.warm_up()
    timed = Timed(engine._model, args.entropy)
    rows = []
    for kind, sampling in KINDS.items():
        for number in range(args.streams):
            engine.add(Add(number, EngineRequest(prompt(_PROMPT), sampling)))
        for _ in range(args.streams):  # until all have computed their prompts
            engine.step()
        steps, inferences = list[float](), list[float]()
        for _ in range(args.steps):
            before, began = timed.seconds, time.perf_counter()
            engine.step()
            steps.append(time.perf_counter() - began)
            inferences.append(timed.seconds - before)
        for number in range(args.streams):
            engine.cancel(Cancel(number))
        share = median((step - inference) / step for step, inference in zip(steps, inferences, strict=True))
        python = median(step - inference for step, inference in zip(steps, inferences, strict=True))
        rows.append([kind, f"{1000 * median(steps):.1f}", f"{1000 * python:.2f}", f"{share:.1%}"])
    heads = ["sampling", "step, ms", "of it outside the forward pass, ms", "share"]
    return report(f"A step of {args.streams} streams, {model.name}, {processor_name()}", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--entropy", type=float, default=2.0, help="of a token, in nats")
    print(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
