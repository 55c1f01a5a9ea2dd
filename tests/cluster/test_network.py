"""Nothing of Dray calls anybody by itself."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "first", ["cluster.launch.preflight", "deployments.engine.core", "deployments.engine.embedder"]
)
def test_openvino_reports_to_nobody(first: str, tmp_path: Path) -> None:
    script = f"import {first}, openvino, openvino_genai, sys; sys.exit('openvino_telemetry.main' in sys.modules)"
    # Where it reports, it keeps the number of the reporter in the home folder.
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, env={"HOME": str(tmp_path)})
    assert not list(tmp_path.iterdir())
