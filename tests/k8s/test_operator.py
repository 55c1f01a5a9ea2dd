"""What KubeRay adds to our pods, and whether our image can do it."""

import os
import subprocess
import sys
from pathlib import Path

from cluster.kubernetes.pods import in_cluster, pod_environment
from cluster.ports import free_port
from tests.k8s.manifests import settings_of

_WAIT_MIB = 256
"""Memory of the container wait-gcs-ready, which runs `ray health-check` in the environment of workers (pod.go:649,
v1.7.0). No setting of ours changes it."""

_MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_waiting_for_the_head_fits_into_the_memory_that_kuberay_gives_it(tmp_path: Path) -> None:
    variables = pod_environment(in_cluster(settings_of("production")))
    variables["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path)
    command = [str(Path(sys.executable).with_name("ray")), "health-check", "--address", f"127.0.0.1:{free_port()}"]
    # By a small process in between: a child's maximum starts with the size of the process that it was forked from.
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *command],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    code, kib = map(int, done.stdout.split()[-2:])
    assert code == 1, "no GCS is there"
    assert 50 < kib / 1024 < _WAIT_MIB
