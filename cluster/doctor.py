"""Whether Dray can run on this machine, and how well: everything that is looked at before a start, at once.

A finding says what is so and, where that is not as it should be, what to do.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Literal

import httpx
import psutil
import redis
from packaging.requirements import Requirement

from cluster.cores import UsableCores, cgroup_quota, count_free, format_cpus, usable_cores
from cluster.kubernetes.sizes import KubernetesError, ModelInCluster
from cluster.launch.environment import OBJECT_STORE_BYTES
from cluster.launch.preflight import (
    LaunchError,
    PreflightResult,
    available_memory,
    base_memory,
    check_cores,
    check_memory,
    check_port,
    check_processor,
    check_state_dir,
    engines_of,
    find_engines,
    memory_limit,
    port_block,
)
from cluster.launch.state import Record, read_record
from cluster.models.folder import (
    KnownModel,
    ModelFolderError,
    check_readable,
    is_to_be_fetched,
    memory_needed,
    open_model,
)
from cluster.models.hubs import open_hub
from cluster.redis_client import RedisUrlError, connect, without_password
from cluster.redis_server import find_server
from cluster.serve_config import Engine
from cluster.settings import Settings

MIRROR = "https://hf-mirror.com"
_CPU_MANAGER = Path("/var/lib/kubelet/cpu_manager_state")
_SHARED_MEMORY = Path("/dev/shm")
_LITTLE_DISK = 2**30
_HUB_S = 3.0
_EXCLUSIVE = "set cpuManagerPolicy: static on the node, and in the pod whole CPUs with requests equal to limits"

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found. warn: Dray starts, and something of it will be slow or missing."""

    check: str
    level: Level
    message: str


def examine(settings: Settings, *, offline: bool = False, cpu_manager: Path = _CPU_MANAGER) -> Iterator[Finding]:
    """Every check, one after the other; none changes anything.

    offline: ask no hub. cpu_manager: where the kubelet of this node notes its CPU manager's state.
    """
    # There, the settings are those of the whole cluster, and `dray k8s render` has seen to what each pod gets of them.
    pod = "KUBERNETES_SERVICE_HOST" in os.environ
    usable = usable_cores()
    record = read_record(settings.state_dir)
    yield _tried("processor", check_processor)
    yield _numa(settings, usable)
    yield _limits()
    models: list[KnownModel] = []
    for finding, model in _models(settings):
        models += [model] if model else []
        yield finding
    if not pod:
        yield from _room(settings, usable, models, record)
        yield from _ports(settings, record)
        yield _other_rays(record)
    yield _shared_memory()
    yield from _disks(settings)
    yield from _redis(settings)
    yield _packages()
    if not offline:
        yield from _hubs()
    if pod:
        yield _pod(usable)
    elif os.access(cpu_manager, os.R_OK):
        yield _node(cpu_manager)


def _tried(check: str, attempt: Callable[[], str]) -> Finding:
    """What an attempt says, or why it is refused."""
    try:
        return Finding(check, "ok", attempt())
    except LaunchError as error:
        return Finding(check, "fail", str(error))


def _numa(settings: Settings, usable: UsableCores) -> Finding:
    sizes = {
        node: len(list(cores))
        for node, cores in groupby(sorted(usable.cores, key=lambda core: core.node), lambda core: core.node)
    }
    said = ", ".join(f"node {node}: {size} cores" for node, size in sizes.items())
    most, wide = max(sizes.values(), default=0), max(one.cores_per_replica for one in settings.served)
    if len(sizes) > 1 and wide > most:
        return Finding(
            "NUMA",
            "warn",
            f"{said}; a replica of {wide} cores reads memory of another node: take cores_per_replica up to {most}",
        )
    return Finding("NUMA", "ok", said)


def _limits() -> Finding:
    quota, memory = cgroup_quota(), memory_limit()
    said = f"{quota or 'no CPU quota'}, {'no memory limit' if memory is None else f'{_gb(memory)} of memory'}"
    if quota and quota.cpus != quota.cores:
        return Finding("limits", "warn", f"{said}; only whole cores are leased, so the rest is lost: give whole CPUs")
    return Finding("limits", "ok", said)


def _models(settings: Settings) -> Iterator[tuple[Finding, KnownModel | None]]:
    """Each model, with what is known of it: of its folder, or of the catalog where it is still to be fetched."""
    for model in settings.served:
        try:
            if is_to_be_fetched(model, settings.models_dir):
                yield _to_be_fetched(settings, ModelInCluster(model))
                continue
            opened = open_model(model, settings.models_dir)
            check_readable(opened)
        except ModelFolderError as error:
            yield Finding("model", "fail", str(error)), None
            continue
        size = f"{_gb(opened.weights_bytes)}, {opened.context_tokens} tokens of context"
        yield Finding("model", "ok", f"{opened.name} in {opened.folder}: {size}"), opened


def _to_be_fetched(settings: Settings, model: ModelInCluster) -> tuple[Finding, KnownModel | None]:
    said = f"{model.name} is not on this machine; `dray up` or `dray models pull {model.settings.source}` fetches it"
    try:
        size = model.weights_bytes
    except KubernetesError:
        return Finding("model", "warn", f"{said}, and how large it is will be known then"), None
    free = _free(settings.models_dir)
    if size > free:
        said = f"{model.name} takes {_gb(size)} and {settings.models_dir} has {_gb(free)} free; set models_dir"
        return Finding("model", "fail", f"{said} (DRAY_MODELS_DIR) to another disk"), model
    return Finding("model", "warn", f"{said}: {_gb(size)}"), model


def _room(
    settings: Settings, usable: UsableCores, models: Sequence[KnownModel], record: Record | None
) -> Iterator[Finding]:
    """Cores and memory. What a Dray has that runs on this state folder counts as free: `dray deploy` takes it over."""
    engines = engines_of(settings, models, usable)
    running = _running(record, usable)
    free = count_free(settings.core_lock_dir, usable=usable) + sum(engine.leased for engine in running)

    def cores() -> str:
        check_cores(settings, PreflightResult(engines, usable.count), usable, free)
        among = ", those of the Dray that runs here among them" if running else ""
        return f"{usable.describe()}; {sum(engine.leased for engine in engines)} needed, {free} free{among}"

    yield _tried("cores", cores)
    there = available_memory() + sum(memory_needed(engine.model) for engine in running)
    base = 0 if running else base_memory(settings)
    yield _tried("memory", partial(check_memory, engines, base, there))


def _running(record: Record | None, usable: UsableCores) -> tuple[Engine, ...]:
    if record is None or record.head or record.stage != "ready":
        return ()
    try:
        return find_engines(Settings(**record.settings), usable).engines
    except LaunchError:
        return ()  # its model's folder was taken away since; it is told of as a model


def _shared_memory() -> Finding:
    free = _free(_SHARED_MEMORY)
    if free < OBJECT_STORE_BYTES:
        said = f"{_SHARED_MEMORY} has {_gb(free)} free, and Ray wants {_gb(OBJECT_STORE_BYTES)}"
        return Finding("shared memory", "warn", f"{said}; start the container with --shm-size=256m")
    return Finding("shared memory", "ok", f"{_gb(free)} free in {_SHARED_MEMORY}")


def _disks(settings: Settings) -> Iterator[Finding]:
    try:
        check_state_dir(settings.state_dir)
    except LaunchError as error:
        yield Finding("disk", "fail", str(error))
    for name in ("state_dir", "data_dir", "models_dir"):
        folder: Path = getattr(settings, name)
        there = _existing(folder)
        if not os.access(there, os.W_OK):
            said = f"{name} {folder} cannot be written; set DRAY_{name.upper()} to a folder of yours"
            yield Finding("disk", "fail", said)
        elif (free := _free(folder)) < _LITTLE_DISK:
            yield Finding("disk", "warn", f"{name} {folder} has only {_gb(free)} free; make room")
        else:
            yield Finding("disk", "ok", f"{name} {folder}: {_gb(free)} free")


def _ports(settings: Settings, record: Record | None) -> Iterator[Finding]:
    if record is not None:
        where = record.url or f"with {record.head}"
        yield Finding("ports", "ok", f"Dray runs here already, {where} (process {record.pid})")
        return

    def free(host: str, port: int) -> str:
        check_port(host, port)
        return f"{host}:{port} is free"

    yield _tried("ports", partial(free, settings.host, settings.port))
    chosen = settings.cluster
    for port in (chosen.port, *range(chosen.redis_port, chosen.redis_port + 3)) if chosen.head else ():
        yield _tried("ports", partial(free, "0.0.0.0", port))
    yield _tried("ports", _inner_ports)


def _inner_ports() -> str:
    with port_block() as ports:
        return f"{ports.start} to {ports.stop - 1} are free for Ray Serve and HAProxy"


def _redis(settings: Settings) -> Iterator[Finding]:
    for name, url in (("cache.url", settings.cache.url), ("teams.url", settings.teams.url)):
        if url:
            yield _named_redis(name, url)
    if not (settings.cache.url and settings.teams.url):
        server = find_server()
        ended = subprocess.run([server, "--version"], capture_output=True, text=True, check=False)
        said = ended.stdout.strip() or f"{server} does not run; install redis-server or valkey-server"
        yield Finding("Redis", "fail" if ended.returncode else "ok", said)


def _named_redis(name: str, url: str) -> Finding:
    shown = f"{name} {without_password(url)}"
    try:
        with connect(url) as client:
            client.ping()
            policy = client.info("memory").get("maxmemory_policy", "")
    except (redis.RedisError, RedisUrlError, OSError) as error:
        return Finding("Redis", "fail", f"{shown} does not answer: {error}; check its address, password and TLS")
    if name == "teams.url" and policy != "noeviction":
        return Finding("Redis", "warn", f"{shown} may evict teams and keys; set its maxmemory-policy to noeviction")
    return Finding("Redis", "ok", f"{shown} answers")


def _packages() -> Finding:
    """Ray among them: Dray is made for one minor version of it."""
    wrong = []
    for line in metadata.requires("dray") or ():
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            found = "none"
        if found == "none" or not needed.specifier.contains(found, prereleases=True):
            wrong.append(f"{needed.name} {needed.specifier} is needed and {found} installed")
    if wrong:
        return Finding("packages", "fail", f"{', '.join(wrong)}; install Dray again: make up")
    shown = ", ".join(f"{name} {metadata.version(name)}" for name in ("ray", "openvino-genai", "transformers"))
    return Finding("packages", "ok", shown)


def _other_rays(record: Record | None) -> Finding:
    ours = psutil.Process(record.pid).children(recursive=True) if record else []
    rays = [one.pid for one in psutil.process_iter(["name"]) if one.info["name"] == "raylet" and one not in ours]
    if not rays:
        return Finding("Ray", "ok", "no other runs here; Dray starts its own")
    said = f"running here already: process {', '.join(map(str, rays))}"
    return Finding("Ray", "ok", f"{said}; Dray starts its own beside it, on ports of its own")


def _hubs() -> Iterator[Finding]:
    """Each hub, asked at the same time. A hub that cannot be reached is no failure: models can be carried here."""
    addresses = dict.fromkeys((open_hub("huggingface").endpoint, MIRROR, open_hub("modelscope").endpoint))
    with ThreadPoolExecutor(len(addresses)) as workers:
        yield from workers.map(_hub, addresses)


def _hub(address: str) -> Finding:
    try:
        status = httpx.head(address, timeout=_HUB_S, follow_redirects=True).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        said = f"{address} is not reached ({str(error) or type(error).__name__})"
        return Finding(
            "hub", "warn", f"{said}; set HF_ENDPOINT to a mirror, take --source modelscope, or carry a folder"
        )
    return Finding("hub", "ok", f"{address} answers (HTTP {status})")


def _pod(usable: UsableCores) -> Finding:
    """Whether an engine here has its CPUs to itself."""
    every = {cpu for core in usable.topology.cores for cpu in core.cpus}
    shares = usable.quota is not None and usable.quota.cpus != len(usable.allowed)
    if usable.allowed >= every or shares:
        said = f"this pod shares the CPUs {format_cpus(usable.allowed)}, so another may choose the same cores"
        return Finding("Kubernetes", "warn", f"{said}; {_EXCLUSIVE}")
    return Finding("Kubernetes", "ok", f"this pod is held to the CPUs {format_cpus(usable.allowed)}")


def _node(cpu_manager: Path) -> Finding:
    policy = json.loads(cpu_manager.read_text()).get("policyName")
    said = f"the CPU manager of this node has the policy {policy}"
    if policy != "static":
        return Finding("Kubernetes", "warn", f"{said}; {_EXCLUSIVE}")
    return Finding("Kubernetes", "ok", said)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(one for one in (folder, *folder.absolute().parents) if one.exists())


def _free(folder: Path) -> int:
    return shutil.disk_usage(_existing(folder)).free


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
