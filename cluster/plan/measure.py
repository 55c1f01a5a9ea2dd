"""Measures a profile: a separate process steps the engine on leased cores."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cluster.cores import lease_cores, processor_name
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
        process = subprocess.Popen(
            [sys.executable, "-m", _STEPPER, msgspec.json.encode(request).decode()],
            stdout=subprocess.PIPE,
            pass_fds=lease.pass_fds,
        )
        assert process.stdout is not None
        try:
            header, points = None, []
            for line in process.stdout:
                if header is None:
                    header = msgspec.json.decode(line, type=ProfiledEngine)
                    continue
                points.append(msgspec.json.decode(line, type=MeasuredStep))
                yield points[-1]
            status = process.wait()
        finally:
            process.stdout.close()
            process.kill()
            process.wait()
        if header is None or not points:
            raise ProfileError(f"the engine exited with status {status} during the measurement")
        yield Profile(header, points, processor_name(), time.strftime("%Y-%m-%d %H:%M"))
