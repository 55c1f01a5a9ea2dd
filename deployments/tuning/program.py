"""Measures an engine's variants, chooses one, and prints each result as a line of JSON.

`dray tune` starts it on the cores of a lease. At most two variants are loaded at a time: the default and one beside it.
"""

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

import msgspec

from cluster.models.compare import read_questions
from cluster.models.folder import ServedModel, open_model
from cluster.settings import BUNDLED, ModelSettings
from cluster.tuning.choice import (
    DEFAULT,
    PROMPT_TOKENS,
    STEP_SIZES,
    STREAMS,
    AnswerCheck,
    PromptSpeeds,
    Trial,
    Variant,
    candidates,
    choose,
    choose_step_tokens,
    is_confirmed,
)
from cluster.tuning.measure import PROBLEMS, Baseline, Chosen, Event, TuneRequest
from deployments.common.messages import EngineConfig
from deployments.engine.engine import Engine
from deployments.engine.model import config_for, own_precision, release_weights
from deployments.generation.prompts import PromptRenderer
from deployments.tuning.answers import count_right
from deployments.tuning.loads import LoadedVariant, compare, in_turn

_PROMPT_ROUNDS = 3
"""A prompt of several steps is measured in a third of the rounds: it takes long, so its times vary less."""


def tune(request: TuneRequest, model: ServedModel) -> Iterator[Event]:
    """Yields every result once it is there, and the choice at the end."""
    config = config_for(model, request.cpus)
    variants = tuple(candidates(own := own_precision()))  # type: ignore[arg-type]
    yield Baseline(own, len(variants))
    default = LoadedVariant(config, DEFAULT)
    trials = []
    for variant in variants:
        trials.append(_trial(config, default, variant, request.rounds))
        yield trials[-1]
    chosen = choose(trials, allow_lower_precision=request.allow_lower_precision)
    while not is_confirmed(trials, chosen):
        trials.append(_trial(config, default, chosen, request.rounds))
        yield trials[-1]
        chosen = choose(trials, allow_lower_precision=request.allow_lower_precision)
    if chosen.is_less_precise and model.settings.source == BUNDLED:
        check = _check(model, config, chosen)
        yield check
        if not check.passed:
            chosen = choose(trials, allow_lower_precision=False)
    loaded = default if chosen == DEFAULT else LoadedVariant(config, chosen)
    speeds = _prompt_speeds(loaded, model.context_tokens, max(1, request.rounds // _PROMPT_ROUNDS))
    yield speeds
    yield Chosen(chosen, choose_step_tokens(speeds.by_step_tokens))


def _trial(config: EngineConfig, default: LoadedVariant, variant: Variant, rounds: int) -> Trial:
    other = LoadedVariant(config, variant)
    limit = min(config.max_num_seqs, default.max_streams, other.max_streams)
    streams = sorted({min(count, limit) for count in STREAMS})
    prompt = min(PROMPT_TOKENS, default.max_prompt, other.max_prompt)
    loads = tuple(compare(default, other, streams, prompt, rounds))
    release_weights(config.model_dir)
    return Trial(variant, loads)


def _check(model: ServedModel, config: EngineConfig, variant: Variant) -> AnswerCheck:
    prompts, problems = PromptRenderer(model), read_questions(PROBLEMS)
    right = []
    for each in (DEFAULT, variant):
        own = msgspec.structs.replace(
            config, inference_precision=each.precision, dynamic_quantization_group_size=each.group_size
        )
        right.append(count_right(Engine(own), prompts, problems))
    return AnswerCheck(variant, len(problems), *right)


def _prompt_speeds(loaded: LoadedVariant, context_tokens: int, rounds: int) -> PromptSpeeds:
    """Of one prompt, as long as the largest step, by the size of its steps."""
    length = min(STEP_SIZES[-1], context_tokens, loaded.max_prompt)
    sizes = [size for size in STEP_SIZES if size <= length] or [STEP_SIZES[0]]
    times = in_turn([partial(loaded.prompt, length, size) for size in sizes], rounds)
    return PromptSpeeds({size: length / median(seconds) for size, seconds in zip(sizes, times, strict=True)})


def main() -> None:
    """argv[1]: a TuneRequest as JSON."""
    request = msgspec.json.decode(sys.argv[1], type=TuneRequest)
    os.sched_setaffinity(0, request.cpus)
    model = open_model(ModelSettings.model_validate(request.model), Path(request.models_dir))
    for event in tune(request, model):
        print(msgspec.json.encode(event).decode(), flush=True)


if __name__ == "__main__":
    main()
