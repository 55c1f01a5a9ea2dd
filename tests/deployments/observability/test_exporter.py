"""The metrics of a pod's processes, as Prometheus gets them: of the living, and of those only."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from deployments.observability.exporter import serve

ENGINE = """
from deployments.observability.metrics import EngineMetrics
from deployments.common.messages import Load
import sys
metrics = EngineMetrics("m", sys.argv[1])
metrics.report(Load(), 3)
metrics.restarts.inc()
print("told", flush=True)
sys.stdin.read()
"""


def test_gauges_are_of_the_living_and_counters_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    engines = []
    for name in ("stays", "goes"):
        engines.append(
            subprocess.Popen(
                [sys.executable, "-c", ENGINE, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            )
        )
        assert engines[-1].stdout is not None
        assert engines[-1].stdout.readline() == b"told\n"
    server = serve(0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/metrics"
        both = httpx.get(url).text
        engines[1].kill()
        engines[1].communicate()
        one = httpx.get(url).text
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for engine in engines:
            engine.kill()
            engine.communicate()
    gauge, counter = 'dray_engine_running{model="m"', "dray_engine_restarts_total{"
    for name in ("stays", "goes"):
        assert [line for line in both.splitlines() if line.startswith(gauge) and name in line]
        assert [line for line in one.splitlines() if line.startswith(counter) and name in line]
    assert [line for line in one.splitlines() if line.startswith(gauge) and "stays" in line]
    assert not [line for line in one.splitlines() if line.startswith(gauge) and "goes" in line]
