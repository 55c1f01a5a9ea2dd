"""Measures what is fastest: a separate process compares an engine's variants on leased cores."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from cluster.cores import lease_cores
from cluster.measuring import measuring
from cluster.models.folder import ServedModel, private_memory
from cluster.tuning.choice import AnswerCheck, PromptSpeeds, Trial, Variant

_PROGRAM = "deployments.tuning.program"
PROBLEMS = Path(__file__).with_name("problems.jsonl")
"""Held-out problems of the bundled model, as `python -m demo.measure --problems` writes them."""


class TuneError(Exception):
    """The measurement could not be finished; the message says why."""


class TuneRequest(msgspec.Struct, frozen=True):
    """Which model (its settings) to measure, on which logical CPUs, and how often each load."""

    model: dict[str, object]
    models_dir: str
    cpus: tuple[int, ...]
    rounds: int
    allow_lower_precision: bool


class Baseline(msgspec.Struct, frozen=True, tag=True):
    """own_precision: the number format that OpenVINO chooses here. variants: how many are compared with the default."""

    own_precision: str
    variants: int


class Chosen(msgspec.Struct, frozen=True, tag=True):
    """What to keep."""

    variant: Variant
    step_tokens: int


Event = Baseline | Trial | AnswerCheck | PromptSpeeds | Chosen


def memory_to_tune(model: ServedModel) -> int:
    """Bytes: two variants are loaded at a time, and the mapped weights."""
    return model.weights_bytes + 2 * private_memory(model)


def measure(
    model: ServedModel, models_dir: Path, cores: int, lease_dir: Path, *, rounds: int, allow_lower_precision: bool
) -> Iterator[Event]:
    """Yields each result once it is there; the last is Chosen. Raises NotEnoughCores, LeasesUnavailable, TuneError."""
    with lease_cores(cores, lease_dir, owner="tune") as lease:
        settings = model.settings.model_dump(mode="json")
        request = TuneRequest(settings, str(models_dir), lease.cpus, rounds, allow_lower_precision)
        event: Event | None = None
        with measuring(_PROGRAM, request, lease) as (process, lines):
            for line in lines:
                event = msgspec.json.decode(line, type=Event)
                yield event
            status = process.wait()
        if status or not isinstance(event, Chosen):
            raise TuneError(f"the engine exited with status {status} during the measurement; nothing was kept")
