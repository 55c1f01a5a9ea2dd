"""The first process of each container, in a PID namespace of its own: it ends by itself within seconds of SIGTERM.

Without that a pod ends only after its grace period, by force. Workers' pods share one namespace, so that the processes
of their main container are not its first; how long they drain is tested with running services.
"""

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.ports import free_port
from tests.conftest import wait_for
from tests.k8s.manifests import K8S, OVERLAYS, ROOT, Document, cluster_of, containers, kustomize, pod_templates
from tests.k8s.test_redis import configuration

LIMIT_S = 5
"""What is promised: every container ends within five seconds of SIGTERM."""
SLACK_S = 5
"""What a busy machine may add: these processes do not always get a core at once."""
NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")

pytestmark = pytest.mark.skipif(
    subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode != 0,
    reason="needs the right to create a PID namespace",
)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return kustomize(K8S / "overlays" / "several")


def container_of(documents: list[Document], pod: str, name: str) -> Document:
    template = next(template for name, template in pod_templates(documents) if name.startswith(pod))
    return next(container for container in containers(template) if container["name"].startswith(name))


def in_image(command: list[str]) -> list[str]:
    """The command with this machine's Python and `dray` of this tree."""
    programs = {"python": [sys.executable], "dray": [sys.executable, "-m", "cluster.cli"]}
    return [*programs.get(command[0], command[:1]), *command[1:]]


@contextmanager
def first_process(command: list[str], **environment: str) -> Iterator[psutil.Process]:
    """Runs the command as the first process of a namespace; yields that process as this namespace sees it."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"} | environment
    with tempfile.TemporaryFile() as log, subprocess.Popen([*NAMESPACE, *command], env=own, stdout=log) as outer:
        try:
            [first] = wait_for(psutil.Process(outer.pid).children)
            yield first
        finally:
            outer.kill()


def ends_on_sigterm(first: psutil.Process) -> None:
    started = time.monotonic()
    first.send_signal(signal.SIGTERM)
    first.wait(60)
    assert time.monotonic() - started < LIMIT_S + SLACK_S


def handles_sigterm(process: psutil.Process) -> bool:
    """Whether it has a handler by now: a signal before that is lost, as it is in a container."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_process_without_a_handler_would_not_end() -> None:
    """What these tests would find."""
    with first_process([sys.executable, "-c", "import time; time.sleep(60)"]) as first:
        first.send_signal(signal.SIGTERM)
        with pytest.raises(psutil.TimeoutExpired):
            first.wait(0.5)


def test_the_metrics_container(documents: list[Document], tmp_path: Path) -> None:
    command = in_image(container_of(documents, "head", "metrics")["command"])
    port = free_port()
    # Its port is fixed in the pod; here another service may have it.
    program = f"from deployments.observability import exporter; exporter.main({port})"
    assert command == [sys.executable, "-m", "deployments.observability.exporter"]
    with first_process([sys.executable, "-c", program], PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as first:
        wait_for(lambda: _listens(port))
        ends_on_sigterm(first)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_the_container_that_waits_for_models(documents: list[Document]) -> None:
    command = in_image(container_of(documents, "routers", "model")["command"])
    with first_process(command) as first:
        wait_for(lambda: handles_sigterm(first))
        ends_on_sigterm(first)


def test_the_container_that_fetches_models(documents: list[Document], tmp_path: Path) -> None:
    """From a hub that accepts connections and never answers."""
    command = in_image(container_of(documents, "Job/dray-models", "deepseek")["command"])
    with socket.create_server(("127.0.0.1", 0)) as hub:
        endpoint = f"http://127.0.0.1:{hub.getsockname()[1]}"
        hub.settimeout(60)
        with first_process(command, HF_ENDPOINT=endpoint, DRAY_MODELS_DIR=str(tmp_path)) as first:
            connection, _ = hub.accept()
            with connection:
                ends_on_sigterm(first)


def test_the_autoscaler_with_the_command_that_kuberay_generates(documents: list[Document]) -> None:
    """kuberay v1.7.0, common/pod.go:941, 1027-1032."""
    options = cluster_of(documents)["autoscalerOptions"]
    generated = "ray kuberay-autoscaler --cluster-name dray --cluster-namespace dray"
    command = [*options["command"], *options["args"]]
    with first_process(command, KUBERAY_GEN_AUTOSCALER_START_CMD=generated, RAY_AUTH_MODE="disabled") as first:
        [autoscaler] = wait_for(first.children)
        wait_for(lambda: "kuberay-autoscaler" in " ".join(autoscaler.cmdline()))
        ends_on_sigterm(first)


def test_the_autoscalers_container_ends_with_it(documents: list[Document]) -> None:
    options = cluster_of(documents)["autoscalerOptions"]
    command = [*NAMESPACE, *options["command"], *options["args"]]
    environment = os.environ | {"KUBERAY_GEN_AUTOSCALER_START_CMD": "sh -c exit\\ 3"}
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode != 0


def test_the_head_with_the_command_that_kuberay_generates(documents: list[Document]) -> None:
    """kuberay v1.7.0, common/pod.go:888-912, 1422."""
    container = container_of(documents, "head", "ray-head")
    environment = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    assert environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "0"
    with tempfile.TemporaryDirectory(prefix="dray-h-") as folder:
        start = (
            "ray start --head --block --num-cpus=0 --port=0 --resources='{\"a b\": 1}' "
            f"--object-store-memory=83886080 --include-dashboard=false --temp-dir={folder}"
        )
        with first_process(head_command(documents), **head_environment(start)) as first:
            logs = Path(folder) / "session_latest" / "logs"
            wait_for(lambda: (logs / "raylet.out").exists() and _raylet_runs(first), 60)
            [ray] = first.children()
            wait_for(lambda: handles_sigterm(ray))
            ends_on_sigterm(first)


def head_command(documents: list[Document]) -> list[str]:
    """The command of the head's container, which KubeRay leaves as it is (v1.7.0, common/pod.go:892-898)."""
    template = cluster_of(documents)["headGroupSpec"]["template"]
    assert template["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    container = container_of(documents, "head", "ray-head")
    return [*container["command"], *container["args"]]


def head_environment(start: str) -> dict[str, str]:
    """Its variables. start: the command that KubeRay generates (common/pod.go:1277)."""
    return {
        "KUBERAY_GEN_RAY_START_CMD": start,
        "RAY_AUTH_MODE": "disabled",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # A test may not raise the limit as a container may.
        "RAY_START_ULIMIT_OPEN_FILES": str(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    }


@pytest.mark.parametrize("start", ["sleep 60", "sh -c 'trap : TERM; echo; while :; do sleep 1; done'"])
def test_the_head_ends_whether_ray_does_or_not(documents: list[Document], start: str) -> None:
    with first_process(head_command(documents), **head_environment(start)) as first:
        wait_for(lambda: [child.name() for child in first.children()] == [start.split()[0]])
        wait_for(lambda: handles_sigterm(first))
        ends_on_sigterm(first)


def test_the_heads_container_ends_with_ray_and_its_status(documents: list[Document]) -> None:
    command = [*NAMESPACE, *head_command(documents)]
    environment = os.environ | head_environment("sh -c 'exit 3'")
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == 3


def _raylet_runs(first: psutil.Process) -> bool:
    return any(child.name() == "raylet" for child in first.children(recursive=True))


def test_redis(documents: list[Document], tmp_path: Path) -> None:
    port = free_port()
    command, _ = configuration(documents, "dray-teams", tmp_path, port)
    with first_process(["sh", "-c", command], PASSWORD="s3cret") as first:
        wait_for(lambda: _listens(port))
        ends_on_sigterm(first)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_container_has_another_kind_of_first_process(overlay: str) -> None:
    """Each one is `dray`, which handles SIGTERM, or one of those above; or the pod shares its namespace."""
    covered = (["python", "-m", "deployments.observability.exporter"], ["dray"], ["sh", "-c"])
    for name, template in pod_templates(kustomize(K8S / "overlays" / overlay)):
        for container in containers(template):
            command = container.get("command", [])
            shared = template["spec"].get("shareProcessNamespace") is True
            known = any(command[: len(start)] == start for start in covered)
            assert known or shared or container["name"] == "ray-head", f"{name}/{container['name']}: {command}"
