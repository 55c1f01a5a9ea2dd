"""What a process on leased cores can measure, and running one of these tasks.

Each variant has a process of its own, since one that does not work on this processor may end by a signal.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import IO

import msgspec

from cluster.child import ending
from cluster.cores import CoreLease
from cluster.measuring import measuring
from cluster.models.folder import ServedModel
from cluster.tuning.choice import FIRST_PROMPT_TOKENS, AnswerCheck, Dropped, PromptSpeeds, Timed, Trial
from cluster.tuning.variants import Variant

_PROGRAM = "deployments.tuning.program"
PROBLEMS = Path(__file__).with_name("problems.jsonl")
"""Held-out problems of the bundled model, as `python -m demo.measure --problems` writes them."""


class TuneError(Exception):
    """The measurement could not be finished; the message says why."""


class CompareTask(msgspec.Struct, frozen=True, tag=True):
    """Measure a variant and the most exact one in turn, for about as many seconds, but each load a few times."""

    variant: Variant
    seconds: float


class TimeTask(msgspec.Struct, frozen=True, tag=True):
    """Measure a variant alone, within seconds. prompt_tokens: of the prompt."""

    variant: Variant
    prompt_tokens: int = FIRST_PROMPT_TOKENS


class CheckTask(msgspec.Struct, frozen=True, tag=True):
    """Let a variant and the most exact one solve the bundled model's problems."""

    variant: Variant


class StepSizesTask(msgspec.Struct, frozen=True, tag=True):
    """Measure a prompt in steps of several sizes, for about as many seconds, but each size once."""

    variant: Variant
    seconds: float


class RateTask(msgspec.Struct, frozen=True, tag=True):
    """Say that the variant is loaded, wait for a line, then decode this many streams and compute prompts, for as many
    seconds each."""

    variant: Variant
    streams: int
    seconds: float


Task = CompareTask | TimeTask | CheckTask | StepSizesTask | RateTask


class TuneRequest(msgspec.Struct, frozen=True):
    """Which model (its settings) to measure, on which logical CPUs, and what."""

    model: dict[str, object]
    models_dir: str
    cpus: tuple[int, ...]
    task: Task


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The process waits for its line."""


class Rate(msgspec.Struct, frozen=True, tag=True):
    """Tokens a second."""

    decode: float
    prompt: float


Result = Trial | Timed | AnswerCheck | PromptSpeeds | Loaded | Rate | Dropped


@contextmanager
def started(
    model: ServedModel, models_dir: Path, lease: CoreLease, cpus: tuple[int, ...], task: Task
) -> Iterator[tuple[Popen[bytes], Iterator[Result]]]:
    """A process that carries out the task on some CPUs of the lease, and its results. It is killed at the end."""
    request = TuneRequest(model.settings.model_dump(mode="json"), str(models_dir), cpus, task)
    with measuring(_PROGRAM, request, lease) as (process, lines):
        yield process, _results(lines)


def _results(lines: IO[bytes]) -> Iterator[Result]:
    for line in lines:
        yield msgspec.json.decode(line, type=Result)


def run_task(
    model: ServedModel, models_dir: Path, lease: CoreLease, task: Task, timeout_s: float | None = None
) -> Result:
    """What the task finds; Dropped where the variant does not work.

    Raises TuneError if the process is killed from outside, or is not done within timeout_s.
    """
    with started(model, models_dir, lease, lease.cpus, task) as (process, results):
        timer = threading.Timer(timeout_s, process.kill) if timeout_s is not None else None
        if timer is not None:
            timer.start()
        try:
            result = next(results, None)
            status = process.wait()
        finally:
            if timer is not None:
                timer.cancel()
    if result is not None and not status:
        return result
    if status in (-signal.SIGKILL, -signal.SIGTERM):
        late = f" or not done within {timeout_s:g} s" if timeout_s is not None else ""
        raise TuneError(f"the process that measured {task.variant} was killed from outside{late}")
    return Dropped(task.variant, ending(status))
