"""Carries out one task of a measurement, and prints the result as a line of JSON.

`dray tune`, or an engine's first start, starts it on the cores of a lease. At most two variants are loaded at a time.
"""

import ctypes
import os
import signal
import sys
from functools import partial
from pathlib import Path
from statistics import median

import msgspec

from cluster.models.folder import ServedModel, open_model
from cluster.settings import ModelSettings
from cluster.tuning.choice import (
    PROMPT_TOKENS,
    STEP_SIZES,
    STREAMS,
    AnswerCheck,
    Dropped,
    PromptSpeeds,
    Timed,
    Trial,
)
from cluster.tuning.tasks import (
    PROBLEMS,
    CheckTask,
    CompareTask,
    Loaded,
    Rate,
    RateTask,
    Result,
    StepSizesTask,
    Task,
    TimeTask,
    TuneRequest,
)
from cluster.tuning.variants import WEIGHT_ONLY, Variant
from deployments.common.messages import EngineConfig
from deployments.engine.kernels import FUSED_MLP
from deployments.engine.model import config_for, with_variant
from deployments.tuning.loads import LoadedVariant, compare, in_turn, least_seconds, per_second

_PR_SET_PDEATHSIG = 1


def carry_out(task: Task, model: ServedModel, config: EngineConfig) -> Result:
    """The task's result. Raises RuntimeError, OSError, ValueError or KeyError where the variant cannot be loaded."""
    match task:
        case CompareTask():
            return _compared(config, task.variant, task.seconds)
        case TimeTask():
            return _timed(config, task.variant, task.prompt_tokens)
        case RateTask():
            return _rate(LoadedVariant(config, task.variant), task.streams, task.seconds)
        case CheckTask():
            return _checked(model, config, task.variant)
        case StepSizesTask():
            loaded = LoadedVariant(config, task.variant)
            return _prompt_speeds(loaded, model.context_tokens, task.seconds)


def _compared(config: EngineConfig, variant: Variant, seconds: float) -> Trial | Dropped:
    exact, other = LoadedVariant(config, WEIGHT_ONLY), LoadedVariant(config, variant)
    limit = min(config.max_num_seqs, exact.max_streams, other.max_streams)
    prompt = min(PROMPT_TOKENS, exact.max_prompt, other.max_prompt)
    loads = tuple(compare(exact, other, sorted({min(count, limit) for count in STREAMS}), prompt, seconds))
    return _refused(other, variant) or Trial(variant, loads)


def _timed(config: EngineConfig, variant: Variant, prompt_tokens: int) -> Timed | Dropped:
    loaded = LoadedVariant(config, variant)
    limit = min(config.max_num_seqs, loaded.max_streams)
    streams = sorted({min(count, limit) for count in STREAMS})
    prompt = min(prompt_tokens, loaded.max_prompt)
    seconds = least_seconds(loaded, streams, prompt)
    loads = (*((count, count) for count in streams), (0, prompt))
    return _refused(loaded, variant) or Timed(variant, seconds, loaded.multiplications, loads)


def _rate(loaded: LoadedVariant, streams: int, seconds: float) -> Rate:
    """Tokens a second beside other processes, which wait for the same moment to begin."""
    streams, prompt = min(streams, loaded.max_streams), min(PROMPT_TOKENS, loaded.max_prompt)
    loaded.decode(streams)
    _print(Loaded())
    sys.stdin.readline()
    return Rate(
        per_second(partial(loaded.decode, streams), streams, seconds),
        per_second(partial(loaded.prompt, prompt, prompt), prompt, seconds),
    )


def _refused(loaded: LoadedVariant, variant: Variant) -> Dropped | None:
    """Why a variant is not what it should be, although the plugin took its properties."""
    if any(part.fused for part in variant.parts) and FUSED_MLP not in loaded.multiplications:
        return Dropped(variant, f"OpenVINO did not fuse the MLPs: {loaded.multiplications}")
    return None


def _checked(model: ServedModel, config: EngineConfig, variant: Variant) -> AnswerCheck:
    # Slow imports, which a first start need not wait for.
    from cluster.models.compare import read_questions
    from deployments.engine.engine import Engine
    from deployments.generation.prompts import PromptRenderer
    from deployments.tuning.answers import count_right

    prompts, problems = PromptRenderer(model), read_questions(PROBLEMS)
    right = [count_right(Engine(with_variant(config, each)), prompts, problems) for each in (WEIGHT_ONLY, variant)]
    return AnswerCheck(variant, len(problems), *right)


def _prompt_speeds(loaded: LoadedVariant, context_tokens: int, seconds: float) -> PromptSpeeds:
    """Of one prompt, as long as the largest step, by the size of its steps."""
    length = min(STEP_SIZES[-1], context_tokens, loaded.max_prompt)
    sizes = [size for size in STEP_SIZES if size <= length] or [STEP_SIZES[0]]
    times = in_turn([partial(loaded.prompt, length, size) for size in sizes], 1, seconds)
    return PromptSpeeds({size: length / median(seconds) for size, seconds in zip(sizes, times, strict=True)})


def main() -> None:
    """argv[1]: a TuneRequest as JSON."""
    # An engine replica that is killed must not leave this behind on its cores.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    request = msgspec.json.decode(sys.argv[1], type=TuneRequest)
    os.sched_setaffinity(0, request.cpus)
    model = open_model(ModelSettings.model_validate(request.model), Path(request.models_dir))
    try:
        result = carry_out(request.task, model, config_for(model, request.cpus))
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        lines = str(error).strip().splitlines()
        result = Dropped(request.task.variant, lines[-1] if lines else type(error).__name__)
    _print(result)


def _print(result: Result) -> None:
    print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    main()
