"""A RayCluster of rendered manifests as processes of this machine: Ray's head with Serve, and a worker's pod."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.models.folder import BUNDLED_FOLDER
from tests.k8s.manifests import ROOT, Document, containers

_HEAD = """
import json, sys, time
import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
options = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 80 * 2**20}
ray.init(num_cpus=0, _temp_dir=sys.argv[1], namespace="dray", **options)
serve.start(http_options=json.loads(sys.argv[3]))
_get_global_client().deploy_apps(ServeDeploySchema.model_validate(json.loads(sys.argv[2])))
print(ray.get_runtime_context().gcs_address, flush=True)
while True:
    print(json.dumps({name: app.status for name, app in serve.status().applications.items()}), flush=True)
    time.sleep(0.5)
"""


@dataclass(frozen=True)
class Head:
    """Ray's head with Serve. address: where nodes join."""

    process: subprocess.Popen[str]
    address: str

    def statuses(self) -> dict[str, str]:
        """The next report of the applications' statuses, by their names."""
        assert self.process.stdout is not None and self.process.poll() is None
        statuses: dict[str, str] = json.loads(self.process.stdout.readline())
        return statuses


@contextmanager
def child(command: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.terminate()


def pod_environment(folder: Path, **variables: str) -> dict[str, str]:
    """Variables of all processes of a pod, with its folders below `folder`."""
    (folder / "metrics").mkdir(parents=True)
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "DRAY_LEASE_DIR": str(folder / "cores"),
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        **variables,
    }


@contextmanager
def head(applications: list[Document], folder: Path, environment: Mapping[str, str], port: int = 0) -> Iterator[Head]:
    """Runs a head that deploys the applications. port: of HTTP; 0: none."""
    http = {"location": "HeadOnly", "host": "127.0.0.1", "port": port} if port else {"location": "NoServer"}
    config = json.dumps({"applications": applications})
    command = [sys.executable, "-c", _HEAD, str(folder / "ray"), config, json.dumps(http)]
    with child(command, environment) as process:
        assert process.stdout is not None
        yield Head(process, process.stdout.readline().strip())


@contextmanager
def worker_pod(
    group: Document, address: str, before: list[str], log: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Runs a pod's commands in their order: those before it joins, then Ray's node with the group's resources."""
    resources = {name: int(count) for name, count in group["resources"].items() if name != "CPU"}
    join = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={address}"),
        *(f"--num-cpus={group['resources']['CPU']}", f"--resources={json.dumps(resources)}"),
    ]
    pod = f'"$@" && exec {shlex.join(join)} > {log} 2>&1'
    with child(["sh", "-c", pod, "pod", *before], environment) as node:
        yield node


def waiting_command(group: Document, models_dir: Path) -> list[str]:
    """The command of the container that waits for models, with this machine's folder and Python."""
    [container] = (container for container in containers(group["template"]) if container["name"] == "model")
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError", "kubectl describe must show the reason"
    program, *arguments = container["command"]
    assert program == "dray"
    arguments = [argument.replace("/models", str(models_dir)) for argument in arguments]
    return [sys.executable, "-m", "cluster.cli", *arguments]


def fill(folder: Path, **generation: int) -> None:
    """Puts the bundled model into a folder at once, as `dray models pull` does.

    generation: fields that are added to its defaults, which make it another version.
    """
    unfinished = folder.with_name("unfinished")
    shutil.copytree(BUNDLED_FOLDER, unfinished)
    defaults = unfinished / "generation_config.json"
    defaults.write_text(json.dumps(json.loads(defaults.read_text()) | generation))
    unfinished.rename(folder)
