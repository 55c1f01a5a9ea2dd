"""An upgrade to a model that is not there yet: the old cluster answers until the new one serves.

Real Serves and nodes; KubeRay's part is a few decisions (v1.7.0, rayservice_controller.go, lines beside them).
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from cluster.kubernetes.render import render
from cluster.models.folder import missing_files
from cluster.ports import free_port
from cluster.records import teams
from cluster.records.team_records import Team
from cluster.redis_client import connect
from cluster.settings import Settings
from tests.conftest import redis_server, wait_for
from tests.k8s.kuberay import cluster_hash
from tests.k8s.manifests import K8S, Document
from tests.k8s.ray_clusters import Head, fill, head, pod_environment, waiting_command, worker_pod

MODEL = {"name": "bot", "cores_per_replica": 1, "precision": "exact", "kv_cache_mb": 16}
FIRST, SECOND = "qwen3-0.6b", "smollm3-3b"
ANSWERS = 5


@dataclass(frozen=True)
class Running:
    """A RayCluster that runs. key: a team's key."""

    serve: Head
    url: str
    key: str

    def is_ready(self) -> bool:
        """Whether KubeRay would lead clients here: every application runs (:1846-1893)."""
        statuses = self.serve.statuses()
        assert "DEPLOY_FAILED" not in statuses.values(), "KubeRay does not submit the same config again (:1551)"
        return set(statuses.values()) == {"RUNNING"}

    def answer(self) -> str:
        """Asks once. Returns which model answered."""
        body = {"model": "bot", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        headers = {"Authorization": f"Bearer {self.key}", "Cache-Control": "no-cache"}
        answered = httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        assert answered.status_code == 200, answered.text
        return str(answered.json()["system_fingerprint"])


def service(source: str, models_dir: Path) -> Document:
    """The spec of the RayService that serves a model."""
    settings = Settings(model=MODEL | {"source": source}, models_dir=models_dir, kubernetes={"models_claim": "store"})
    spec: Document = yaml.safe_load(render(settings, K8S / "base")["rayservice.yaml"])["spec"]
    return spec


@contextmanager
def cluster(spec: Document, models: Path, folder: Path, key: str, variables: dict[str, str]) -> Iterator[Running]:
    """Runs a RayCluster. One node has the resources of its routers' and its engine's pods, and waits as both do."""
    routers, engines = spec["rayClusterConfig"]["workerGroupSpecs"]
    command = waiting_command(routers, models)
    assert command == waiting_command(engines, models)
    both = {**engines, "resources": routers["resources"] | engines["resources"]}
    environment, port = pod_environment(folder, DRAY_MODELS_DIR=str(models), **variables), free_port()
    with (
        head(yaml.safe_load(spec["serveConfigV2"])["applications"], folder, environment, port) as serve,
        worker_pod(both, serve.address, command, folder / "node.log", environment),
    ):
        yield Running(serve, f"http://127.0.0.1:{port}", key)


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a core for the old engine and one for the new")
def test_the_old_model_answers_until_the_new_one_has_arrived() -> None:
    with tempfile.TemporaryDirectory(prefix="dray-u-") as name, ExitStack() as stack:
        models = Path(name) / "models"
        models.mkdir()
        fill(models / f"{FIRST}-int8")
        redis = stack.enter_context(redis_server(16))
        with connect(redis.url) as client:
            teams.add_team(client, Team("support", 0.0))
            key = teams.create_key(client, "support").secret
        # What two clusters on one node have in common.
        shared = {"DRAY_TEAMS__URL": redis.url, "DRAY_CACHE__URL": redis.url, "DRAY_LEASE_DIR": f"{name}/cores"}

        def start(spec: Document, part: str) -> Running:
            return stack.enter_context(cluster(spec, models, Path(name) / part, key, shared))

        old_spec, new_spec = service(FIRST, models), service(SECOND, models)
        # Else KubeRay would give the running Serve the new config (:1409-1437), which removes the old engines at once.
        assert cluster_hash(new_spec["rayClusterConfig"]) != cluster_hash(old_spec["rayClusterConfig"])
        old = start(old_spec, "old")
        wait_for(old.is_ready, 200)
        before = old.answer()
        # From here on KubeRay does not touch the old cluster's Serve (:231-252).
        new = start(new_spec, "new")
        assert missing_files(models / f"{SECOND}-int8")
        for _ in range(ANSWERS):
            assert not new.is_ready()
            assert old.answer() == before
        fill(models / f"{SECOND}-int8", version=2)

        def taken_over() -> bool:
            assert old.answer() == before
            return new.is_ready()

        wait_for(taken_over, 200)
        # Only now does KubeRay switch its Service over (:284-296), and delete the old cluster after its streams' time.
        after = new.answer()
        assert after not in ("", before)
        assert old.answer() == before
