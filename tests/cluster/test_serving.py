"""What a user reads when an application does not start."""

import asyncio
import traceback
from pathlib import Path

import pytest
from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview

from cluster.cores import NotEnoughCores, usable_cores
from cluster.launch.serving import failure
from deployments.common.messages import EngineConfig
from deployments.engine.process import EngineProcess, EngineStartError


def status(error: str) -> ApplicationStatusOverview:
    """As Serve reports a replica whose constructor raised: with the traceback, which shows the source."""
    message = (
        "The deployment failed to start 3 times in a row. This may be due to a problem with its constructor or initial "
        "health check failing. See controller logs for details. Error:\n"
        f"\x1b[36mray::ServeReplica:engine:engine.initialize_and_get_metadata()\x1b[39m (pid=1, ip=127.0.0.1)\n{error}"
    )
    engine = DeploymentStatusOverview(DeploymentStatus.DEPLOY_FAILED, DeploymentStatusTrigger.UNSPECIFIED, {}, message)
    return ApplicationStatusOverview(ApplicationStatus.DEPLOYING, "", 0.0, {"engine": engine})


def test_an_engine_that_cannot_start_is_reported_by_its_message(tmp_path: Path) -> None:
    try:
        asyncio.run(EngineProcess.start(EngineConfig(str(tmp_path), (0,), 16, 8, 256, 2.0), timeout_s=60))
    except EngineStartError:
        error = traceback.format_exc()
    assert "raise EngineStartError(" in error, "the line of source must not stand for the message"
    assert failure(status(error)).startswith("the engine cannot start: FileNotFoundError: ")


@pytest.mark.parametrize(
    "error",
    [EngineStartError("killed by SIGFPE while it compiled"), NotEnoughCores(3, 1, usable_cores())],
)
def test_the_errors_of_a_start(error: EngineStartError | NotEnoughCores) -> None:
    try:
        raise error
    except (EngineStartError, NotEnoughCores):
        found = failure(status(traceback.format_exc()))
    assert found == f"the engine cannot start: {error}"


def test_an_application_that_starts_has_no_failure() -> None:
    assert failure(ApplicationStatusOverview(ApplicationStatus.RUNNING, "", 0.0, {})) == ""
