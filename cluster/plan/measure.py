"""Measures a profile: a separate process steps the engine on leased cores."""

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cluster.cores import lease_cores, processor_name
from cluster.measuring import measuring
from cluster.models.folder import open_model
from cluster.plan.profile import MeasuredStep, Profile, ProfiledEngine, ProfileError, ProfileRequest
from cluster.settings import ModelSettings

_STEPPER = "deployments.engine.steps"


def measure(
    model: ModelSettings, models_dir: Path, cores: int, lease_dir: Path, data_dir: Path
) -> Iterator[MeasuredStep | Profile]:
    """Yields each kind of step once it has been measured, and in the end the profile.

    data_dir: where `dray tune` may have kept how the model's engines run here.

    Raises ModelFolderError, NotEnoughCores, ProfileError.
    """
    open_model(model, models_dir)
    with lease_cores(cores, lease_dir, owner="plan") as lease:
        request = ProfileRequest(model.model_dump(mode="json"), str(models_dir), lease.cpus, str(data_dir))
        header, points = None, []
        with measuring(_STEPPER, request, lease) as (process, lines):
            for line in lines:
                if header is None:
                    header = msgspec.json.decode(line, type=ProfiledEngine)
                    continue
                points.append(msgspec.json.decode(line, type=MeasuredStep))
                yield points[-1]
            status = process.wait()
        if status or header is None or not points:
            raise ProfileError(f"the engine exited with status {status} during the measurement")
        yield Profile(header, points, processor_name(), time.strftime("%Y-%m-%d %H:%M"))
