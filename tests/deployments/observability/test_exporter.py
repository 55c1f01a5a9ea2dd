"""The metrics that Prometheus scrapes from a pod: gauges of living processes, counters of all processes."""

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
from deployments.common.messages import EngineLoad
import sys
metrics = EngineMetrics("m", sys.argv[1])
metrics.report(EngineLoad(), 3)
metrics.restarts.inc()
print("reported", flush=True)
sys.stdin.read()
"""


def test_a_dead_process_leaves_its_counters_but_not_its_gauges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    engines = []
    for name in ("alive", "killed"):
        engines.append(
            subprocess.Popen(
                [sys.executable, "-c", ENGINE, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            )
        )
        assert engines[-1].stdout is not None
        assert engines[-1].stdout.readline() == b"reported\n"
    server = serve(0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/metrics"
        before = httpx.get(url).text
        engines[1].kill()
        engines[1].communicate()
        after = httpx.get(url).text
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for engine in engines:
            engine.kill()
            engine.communicate()
    gauge, counter = 'dray_engine_running{model="m"', "dray_engine_restarts_total{"
    for name in ("alive", "killed"):
        assert [line for line in before.splitlines() if line.startswith(gauge) and name in line]
        assert [line for line in after.splitlines() if line.startswith(counter) and name in line]
    assert [line for line in after.splitlines() if line.startswith(gauge) and "alive" in line]
    assert not [line for line in after.splitlines() if line.startswith(gauge) and "killed" in line]


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_clusters_with_either_family_of_addresses_can_scrape(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    server = serve(0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert httpx.get(f"http://{address}:{server.server_address[1]}/metrics").status_code == 200
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
