"""Ray's own autoscaler beneath Dray's policy: nodes come with the load and go with it, and no request fails.

The Serve config is the one of a RayService, sent as KubeRay sends it. The nodes are Ray's pretend ones: all on this
machine, each with room for one engine replica.
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

from cluster.kubernetes.render import routers_of, serve_config_of
from cluster.launch.preflight import port_block
from cluster.launch.ray_node import clear, prepared
from cluster.ports import free_port
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
"""What the autoscaler's config must have, and pretend nodes do without."""
SHARE = 0.3
"""Of the time in which an engine may run: two of them, routers and the client would else want more than two cores."""
HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"


@dataclass(frozen=True)
class Cluster:
    """A head and its autoscaler. api: of Ray's dashboard."""

    settings: Settings
    api: httpx.Client

    def workers(self) -> int:
        """Nodes beside the head that are alive."""
        nodes = self.api.get("/nodes", params={"view": "summary"}).json()["data"]["summary"]
        return [one["raylet"]["state"] for one in nodes].count("ALIVE") - 1

    def replicas(self) -> list[str]:
        """States of the engine's replicas."""
        found = self.api.get("/api/serve/applications/").json()["applications"]
        return [
            replica["state"]
            for name, application in found.items()
            if name.startswith("engine-")
            for replica in application["deployments"]["engine"]["replicas"]
        ]

    def metric(self, name: str) -> float:
        """A metric of the one model's policy."""
        shown = httpx.get(f"http://127.0.0.1:{self.settings.port}/metrics").text
        return next((float(line.split()[-1]) for line in shown.splitlines() if line.startswith(name + "{")), 0.0)


@pytest.fixture
def pretend() -> Iterator[Cluster]:
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
        settings.state_dir.mkdir()
        stack.enter_context(patch.dict(os.environ))
        stack.enter_context(prepared(settings, stack.enter_context(port_block()), TOKEN, alone=False))
        dashboard = stack.enter_context(head(settings, folder))
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        api = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{dashboard}", headers=bearer, timeout=30))
        config = serve_config_of(routers_of(settings)) | {"proxy_location": "HeadOnly"}
        wait_for(lambda: answers_at(lambda: api.get("/api/serve/applications/")), 60)
        api.put("/api/serve/applications/", json=config).raise_for_status()
        ready = f"http://127.0.0.1:{settings.port}/health/ready"
        wait_for(lambda: answers_at(lambda: httpx.get(ready)), 120)
        stack.enter_context(slow_engines(settings))
        yield Cluster(settings, api)


@contextmanager
def slow_engines(settings: Settings) -> Iterator[None]:
    """All of its engines, those too that come later."""
    over, token = threading.Event(), str(settings.state_dir / "ray-token")

    def look() -> None:
        with ExitStack() as brakes:
            seen = set()
            while not over.wait(0.5):
                for process in psutil.process_iter():
                    with suppress(psutil.Error):
                        here = process.environ().get("RAY_AUTH_TOKEN_PATH") == token
                        if here and process.pid not in seen and "deployments.engine.core" in process.cmdline():
                            seen.add(process.pid)
                            brakes.enter_context(slowed(process.pid, SHARE))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def answers_at(ask: Callable[[], httpx.Response]) -> bool:
    try:
        return ask().status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def head(settings: Settings, folder: Path) -> Iterator[int]:
    """A head that runs routers, with an autoscaler that may add two nodes of one engine replica each. Gives the port
    of its dashboard."""
    port, dashboard = free_port(), free_port()
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0, "dray-router": 1}, "node_config": {}, "max_workers": 0},
        "engine": {
            "resources": {"CPU": 1, f"dray-engine-{MODEL}": 1, "object_store_memory": 80 * 2**20},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    }
    provider = {
        # Not by its name: Ray would look for an example of its own that its wheel does not hold.
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
        "available_node_types": kinds,
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
    pretending = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    }
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | pretending, stdout=log, stderr=log)
        try:
            yield dashboard
        finally:
            process.terminate()
            clear(settings.state_dir)
            process.wait(30)


@dataclass
class Load:
    """Questions that nobody has asked, so many a second, until it is told to end. Every answer's status is kept."""

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
        given = await client.post(self.url, json=body)
        self.statuses.append(given.status_code)

    async def run(self, client: httpx.AsyncClient) -> None:
        tasks: set[asyncio.Task[None]] = set()
        began, number = time.monotonic(), 0
        while not self.over:
            while number < (time.monotonic() - began) * self.rate:
                number += 1
                tasks.add(asyncio.create_task(self.ask(client)))
            await asyncio.sleep(0.02)
        await asyncio.gather(*tasks)


@pytest.mark.timeout(400)
def test_nodes_come_with_the_load_and_go_with_it(pretend: Cluster) -> None:
    url = f"http://127.0.0.1:{pretend.settings.port}/v1/chat/completions"
    wait_s = "dray_autoscaling_predicted_wait_seconds"
    assert pretend.workers() == 1 and pretend.replicas() == ["RUNNING"]

    async def true(fact: Callable[[], Any], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not await asyncio.to_thread(fact):
            assert time.monotonic() < deadline, (pretend.workers(), pretend.replicas(), pretend.metric(wait_s))
            await asyncio.sleep(0.2)

    async def go() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            alone = Load(url, 0)
            began = time.monotonic()
            while time.monotonic() - began < 8:
                await asyncio.gather(alone.ask(client), alone.ask(client))
            capacity = len(alone.statuses) / (time.monotonic() - began)
            load = Load(url, 1.4 * capacity)
            running = asyncio.create_task(load.run(client))
            try:
                await true(lambda: pretend.metric(wait_s) > TARGET_S, 60)
                await true(lambda: pretend.workers() == 2, 60)
                await true(lambda: pretend.replicas() == ["RUNNING"] * 2, 60)
                await true(lambda: pretend.metric(wait_s) < TARGET_S, 60)
            finally:
                load.over = True
                await running
            few = Load(url, 4)
            running = asyncio.create_task(few.run(client))
            try:
                await true(lambda: pretend.replicas() == ["RUNNING"], 60)
                await true(lambda: pretend.workers() == 1, 60)
                await asyncio.sleep(2)
            finally:
                few.over = True
                await running
            assert set(alone.statuses + load.statuses + few.statuses) == {200}
            print(f"capacity {capacity:.1f}/s, {len(load.statuses)} and {len(few.statuses)} requests")

    asyncio.run(go())
