"""Dray makes no network calls on its own."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "module", ["cluster.launch.preflight", "deployments.engine.core", "deployments.engine.encoder.replica"]
)
def test_openvino_sends_no_telemetry(module: str, tmp_path: Path) -> None:
    script = f"import {module}, openvino, sys; sys.exit('openvino_telemetry.main' in sys.modules)"
    # The telemetry keeps an id of its user in the home folder.
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, env={"HOME": str(tmp_path)})
    assert not list(tmp_path.iterdir())
