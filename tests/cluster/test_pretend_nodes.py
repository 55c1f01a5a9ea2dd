"""Ray's autoscaler below Dray's policy: nodes come and go with the load, and no request fails.

The Serve config is that of a RayService, sent as KubeRay sends it. The nodes are Ray's fake nodes: all on this machine,
each with room for one engine replica.
"""

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import psutil
import pytest

from cluster.kubernetes.pods import routers_of, serve_config_of
from cluster.launch.preflight import port_block
from cluster.launch.ray_node import clear, prepared
from cluster.ports import free_port
from cluster.private_files import private_folder
from cluster.settings import CacheSettings, ModelSettings, Settings, TeamSettings
from tests.conftest import MODEL, redis_server, wait_for
from tests.slowly import slowed

pytestmark = pytest.mark.slow

TARGET_S, TOKENS, TOKEN = 3.0, 64, "pretend"
_EMPTY = (
    *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands"),
    *("setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
)
"""Keys that the autoscaler's config must have, and that fake nodes do not need."""
SHARE = 0.3
"""Share of the time in which an engine may run: else two engines, routers and the client need more than two cores."""
HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"


@dataclass(frozen=True)
class Cluster:
    """A head and its autoscaler. api: a client of Ray's dashboard."""

    settings: Settings
    api: httpx.Client

    def workers(self) -> int:
        """Number of nodes that are alive, without the head."""
        nodes = self.api.get("/nodes", params={"view": "summary"}).json()["data"]["summary"]
        return [node["raylet"]["state"] for node in nodes].count("ALIVE") - 1

    def replicas(self) -> list[str]:
        """States of the engine's replicas."""
        applications = self.api.get("/api/serve/applications/").json()["applications"]
        return [
            replica["state"]
            for name, application in applications.items()
            if name.startswith("engine-")
            for replica in application["deployments"]["engine"]["replicas"]
        ]

    def metric(self, name: str) -> float:
        """The value of a metric that only one model has; 0 if it is missing."""
        metrics = httpx.get(f"http://127.0.0.1:{self.settings.port}/metrics").text
        return next((float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(name + "{")), 0.0)


@pytest.fixture
def fake_cluster() -> Iterator[Cluster]:
    """A Dray on a head with a router, and on fake nodes that its autoscaler adds."""
    folder = Path(tempfile.mkdtemp(prefix="dray-t-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        answers, teams = stack.enter_context(redis_server(32)), stack.enter_context(redis_server(32))
        settings = Settings(
            port=free_port(),
            state_dir=folder / "s",
            lease_dir=folder / "c",
            data_dir=folder / "d",
            page=False,
            cache=CacheSettings(url=answers.url, timeout_s=2),
            teams=TeamSettings(url=teams.url),
            model=ModelSettings(
                cores_per_replica=1,
                kv_cache_mb=64,
                max_num_seqs=2,
                max_replicas=2,
                target_wait_s=TARGET_S,
                downscale_delay_s=6,
            ),
        )
        private_folder(settings.state_dir)
        stack.enter_context(patch.dict(os.environ))
        stack.enter_context(prepared(settings, stack.enter_context(port_block()), TOKEN, alone=False))
        dashboard = stack.enter_context(head(settings, folder))
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        api = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{dashboard}", headers=bearer, timeout=30))
        config = serve_config_of(routers_of(settings)) | {"proxy_location": "HeadOnly"}
        wait_for(lambda: succeeds(lambda: api.get("/api/serve/applications/")), 60)
        api.put("/api/serve/applications/", json=config).raise_for_status()
        ready = f"http://127.0.0.1:{settings.port}/health/ready"
        wait_for(lambda: succeeds(lambda: httpx.get(ready)), 120)
        stack.enter_context(slow_engines(settings))
        yield Cluster(settings, api)


@contextmanager
def slow_engines(settings: Settings) -> Iterator[None]:
    """Slows down all engines of this Dray, also those that start while the block runs."""
    over, token = threading.Event(), str(settings.state_dir / "ray-token")

    def slow_new_engines() -> None:
        with ExitStack() as brakes:
            slowed_pids = set()
            while not over.wait(0.5):
                for process in psutil.process_iter():
                    with suppress(psutil.Error):
                        is_ours = process.environ().get("RAY_AUTH_TOKEN_PATH") == token
                        if (
                            is_ours
                            and process.pid not in slowed_pids
                            and "deployments.engine.core" in process.cmdline()
                        ):
                            slowed_pids.add(process.pid)
                            brakes.enter_context(slowed(process.pid, SHARE))

    watcher = threading.Thread(target=slow_new_engines)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def succeeds(request: Callable[[], httpx.Response]) -> bool:
    """Whether the request is answered with status 200."""
    try:
        return request().status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def head(settings: Settings, folder: Path) -> Iterator[int]:
    """A head that runs routers, and an autoscaler that may add two nodes of one engine replica each.

    Yields the port of its dashboard.
    """
    port, dashboard = free_port(), free_port()
    node_types = {
        "ray.head.default": {"resources": {"CPU": 0, "dray-router": 1}, "node_config": {}, "max_workers": 0},
        "engine": {
            "resources": {"CPU": 1, f"dray-engine-{MODEL}": 1, "object_store_memory": 80 * 2**20},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    }
    provider = {
        # Not by its name: Ray would then read an example config that its wheel lacks.
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": f"127.0.0.1:{port}",
        "head_node_id": HEAD,
        "launch_multiple": True,
    }
    config = {
        "cluster_name": "pretend",
        "max_workers": 2,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1,
        "provider": provider,
        "available_node_types": node_types,
        "head_node_type": "ray.head.default",
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in _EMPTY},
    }
    file = folder / "autoscaling.json"
    file.write_text(json.dumps(config))
    command = [
        str(Path(sys.executable).with_name("ray")),
        *("start", "--head", "--block", "--num-cpus=0", '--resources={"dray-router": 1}', f"--port={port}"),
        *("--include-dashboard=true", f"--dashboard-port={dashboard}", f"--autoscaling-config={file}"),
        *(f"--temp-dir={settings.state_dir / 'ray'}", f"--object-store-memory={80 * 2**20}"),
    ]
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    }
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
        try:
            yield dashboard
        finally:
            process.terminate()
            clear(settings.state_dir)
            process.wait(30)


@dataclass
class Load:
    """Sends new questions until `over` is set, and keeps the status of each answer. rate: questions per second."""

    url: str
    rate: float
    statuses: list[int] = field(default_factory=list)
    over: bool = False

    async def ask(self, client: httpx.AsyncClient) -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"What is 12 + 13? {secrets.token_hex(4)}"}],
            "max_tokens": TOKENS,
            "ignore_eos": True,
        }
        response = await client.post(self.url, json=body)
        self.statuses.append(response.status_code)

    async def run(self, client: httpx.AsyncClient) -> None:
        tasks: set[asyncio.Task[None]] = set()
        start, sent = time.monotonic(), 0
        while not self.over:
            while sent < (time.monotonic() - start) * self.rate:
                sent += 1
                tasks.add(asyncio.create_task(self.ask(client)))
            await asyncio.sleep(0.02)
        await asyncio.gather(*tasks)


@pytest.mark.timeout(400)
def test_nodes_come_and_go_with_the_load(fake_cluster: Cluster) -> None:
    url = f"http://127.0.0.1:{fake_cluster.settings.port}/v1/chat/completions"
    wait_s = "dray_autoscaling_predicted_wait_seconds"
    assert fake_cluster.workers() == 1 and fake_cluster.replicas() == ["RUNNING"]

    async def wait_until(fact: Callable[[], Any], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not await asyncio.to_thread(fact):
            assert time.monotonic() < deadline, (
                fake_cluster.workers(),
                fake_cluster.replicas(),
                fake_cluster.metric(wait_s),
            )
            await asyncio.sleep(0.2)

    async def vary_load() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            measured = Load(url, 0)
            start = time.monotonic()
            while time.monotonic() - start < 8:
                await asyncio.gather(measured.ask(client), measured.ask(client))
            capacity = len(measured.statuses) / (time.monotonic() - start)
            heavy = Load(url, 1.4 * capacity)
            running = asyncio.create_task(heavy.run(client))
            try:
                await wait_until(lambda: fake_cluster.metric(wait_s) > TARGET_S, 60)
                await wait_until(lambda: fake_cluster.workers() == 2, 60)
                await wait_until(lambda: fake_cluster.replicas() == ["RUNNING"] * 2, 60)
                await wait_until(lambda: fake_cluster.metric(wait_s) < TARGET_S, 60)
            finally:
                heavy.over = True
                await running
            light = Load(url, 4)
            running = asyncio.create_task(light.run(client))
            try:
                await wait_until(lambda: fake_cluster.replicas() == ["RUNNING"], 60)
                await wait_until(lambda: fake_cluster.workers() == 1, 60)
                # Two seconds of requests that reach Dray without the node.
                answered = len(light.statuses)
                await wait_until(lambda: len(light.statuses) >= answered + 2 * light.rate, 60)
            finally:
                light.over = True
                await running
            assert set(measured.statuses + heavy.statuses + light.statuses) == {200}
            print(f"capacity {capacity:.1f}/s, {len(heavy.statuses)} and {len(light.statuses)} requests")

    asyncio.run(vary_load())
