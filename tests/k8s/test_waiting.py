"""Pods that start before their model is there: the container that waits for it, and what Serve makes of such pods."""

import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml
from ray.autoscaler.v2.instance_manager.config import InstanceReconcileConfig

from cluster.kubernetes.render import render
from cluster.kubernetes.sizes import MODEL_WAIT_S
from cluster.models.folder import missing_files
from cluster.settings import Settings
from tests.conftest import wait_for
from tests.k8s.manifests import K8S, Document, containers
from tests.k8s.ray_clusters import fill, head, pod_environment, waiting_command, worker_pod

FOLDER = "qwen3-0.6b-int8"
MODEL = {"source": "qwen3-0.6b", "cores_per_replica": 1, "precision": "exact", "kv_cache_mb": 16}


def worker(models_dir: Path, claim: str = "store") -> tuple[Document, Document]:
    """The engines' worker group of rendered manifests, and their application in the Serve config."""
    settings = Settings(model=MODEL, models_dir=models_dir, kubernetes={"models_claim": claim})
    spec = yaml.safe_load(render(settings, K8S / "base")["rayservice.yaml"])["spec"]
    [engine] = (app for app in yaml.safe_load(spec["serveConfigV2"])["applications"] if app["name"] != "dray")
    return spec["rayClusterConfig"]["workerGroupSpecs"][1], engine


def test_the_container_ends_once_the_model_is_complete(tmp_path: Path) -> None:
    group, _ = worker(tmp_path)
    command = waiting_command(group, tmp_path)
    assert str(tmp_path / FOLDER) in command
    (tmp_path / FOLDER).mkdir()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "openvino_model.bin" in process.stdout.readline()
        assert process.poll() is None, "it must wait while files are missing"
        (tmp_path / FOLDER).rmdir()
        fill(tmp_path / FOLDER)
        assert process.wait(60) == 0


def test_it_gives_up_with_a_reason(tmp_path: Path) -> None:
    group, _ = worker(tmp_path)
    command = [*waiting_command(group, tmp_path)[:-1], "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"no complete model in {tmp_path / FOLDER} after 0.1 s" in done.stderr
    assert "openvino_model.xml" in done.stderr


def test_it_gives_up_before_the_autoscaler_removes_its_pod() -> None:
    assert InstanceReconcileConfig().allocate_status_timeout_s > MODEL_WAIT_S + 300


def test_routers_wait_for_every_model_and_engines_for_their_own(tmp_path: Path) -> None:
    models = ({**MODEL, "name": "a"}, {**MODEL, "source": "qwen3-4b"}, {"source": "bundled", "cores_per_replica": 1})
    settings = Settings(models=models, models_dir=tmp_path, kubernetes={"models_claim": "store"})
    groups = yaml.safe_load(render(settings, K8S / "base")["rayservice.yaml"])["spec"]["rayClusterConfig"]
    waits = {
        group["groupName"]: [word for word in container["command"] if word.startswith("/models/")]
        for group in groups["workerGroupSpecs"]
        for container in containers(group["template"])
        if container["name"] == "model"
    }
    both = ["/models/qwen3-0.6b-int8", "/models/qwen3-4b-int8"]
    assert waits == {"routers": both, "a": both[:1], "qwen3-4b": both[1:]}, "the bundled model is in the image"


@pytest.mark.slow
def test_serve_runs_once_the_model_has_arrived() -> None:
    """A real Serve and a pod's commands in their order. Without the wait Serve gives up after three failed starts."""
    with tempfile.TemporaryDirectory(prefix="dray-w-") as name:
        folder = Path(name)
        models = folder / "models"
        models.mkdir()
        group, application = worker(models)
        environment = pod_environment(folder, DRAY_MODELS_DIR=str(models))
        with (
            head([application], folder, environment) as serve,
            worker_pod(group, serve.address, waiting_command(group, models), folder / "node.log", environment) as node,
        ):
            seen: list[str] = []

            def state() -> str:
                assert node.poll() is None
                [status] = serve.statuses().values()
                seen.append(status)
                assert status != "DEPLOY_FAILED"
                return status

            assert node.stdout is not None
            assert "waiting for" in node.stdout.readline()
            wait_for(lambda: state() == "DEPLOYING")
            assert missing_files(models / FOLDER)
            fill(models / FOLDER)
            wait_for(lambda: state() == "RUNNING", 200)
            assert set(seen) == {"DEPLOYING", "RUNNING"}
