"""A Ray node on this machine: its environment, its processes, and their end, however they came to it."""

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from cluster.launch import haproxy
from cluster.launch.child import dies_with_parent
from cluster.launch.environment import HAPROXY_FOLDER, METRICS_FOLDER, OBJECT_STORE_BYTES, serve_environment
from cluster.launch.import_guard import leave_out_pandas
from cluster.redis_server import Listen
from cluster.settings import ClusterSettings, Settings

_STOP_S = 20.0
_DRAIN_S = 40.0
"""Ray lets the work of a node that is asked to go end for 30 s."""
_TOKEN = "ray-token"
_RAYS_FOLDERS = ("ray", HAPROXY_FOLDER, METRICS_FOLDER)
_FOLDERS = (*_RAYS_FOLDERS, "redis", "teams", "gcs")


def interrupt_on_sigterm() -> None:
    """Makes SIGTERM end this process as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


@contextmanager
def first_node(settings: Settings, cores: int, ports: range, store: Listen | None = None) -> Iterator[None]:
    """Ray on this machine, which others may join where the settings say so; ended with all its processes.

    store: a Redis in which it keeps what it knows; None: in its own memory.
    """
    chosen = settings.cluster
    with prepared(settings, ports, token_of(settings)):
        if chosen.head:
            os.environ["RAY_GCS_SERVER_PORT"] = str(chosen.port)
        if store is not None:
            os.environ["RAY_REDIS_ADDRESS"] = f"{store.address}:{store.port}"
        leave_out_pandas()
        import ray

        before = _below()
        try:
            ray.init(
                address="local",
                num_cpus=cores,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                namespace="dray",
                _temp_dir=str(settings.state_dir / "ray"),
                _node_ip_address=address_of(chosen) if chosen.head else None,
                _redis_password=store.password if store else "",
            )
            interrupt_on_sigterm()  # ray.init puts a handler of its own in its place
            yield
        finally:
            # Named before the shutdown: a process whose parent has gone is no longer found below this one.
            started = _below() - before
            ray.shutdown()
            _end(list(started))


@contextmanager
def further_node(settings: Settings, cores: int, head: str) -> Iterator[Callable[[], bool]]:
    """A node of another machine's Ray, within `prepared`. head: that machine's HOST:PORT.

    What it gives is to be called now and then: it starts the node again where Ray has ended it, as it does with one
    that it had lost from its sight, and tells whether it had to.
    """
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        f"--address={head}",
        f"--node-ip-address={address_of(settings.cluster)}",
        f"--num-cpus={cores}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={settings.state_dir / 'ray'}",
        "--disable-usage-stats",
        "--block",
    ]

    def start() -> subprocess.Popen[bytes]:
        sink, dies = subprocess.DEVNULL, dies_with_parent(signal.SIGTERM)
        return subprocess.Popen(command, stdin=sink, stdout=sink, stderr=sink, preexec_fn=dies)

    process = start()

    def look() -> bool:
        nonlocal process
        if process.poll() is None:
            return False
        _end(list(_below()), patience_s=0)
        process = start()
        return True

    try:
        yield look
    finally:
        started = _below()
        process.terminate()
        _end(list(started), patience_s=_DRAIN_S)


@contextmanager
def prepared(settings: Settings, ports: range, token: str) -> Iterator[None]:
    """The environment and the folders of a node on this machine."""
    folder = settings.state_dir
    os.environ.update(_environment(settings, ports))
    file = folder / _TOKEN
    file.touch(mode=0o600)
    file.write_text(token)
    (folder / METRICS_FOLDER).mkdir(exist_ok=True)
    try:
        yield
    finally:
        for name in _RAYS_FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
        file.unlink(missing_ok=True)


def token_of(settings: Settings) -> str:
    """What another machine needs to join this one: kept with what lasts, so that it holds when the head comes back."""
    if not settings.cluster.head:
        return secrets.token_hex(32)
    file = settings.data_dir / "cluster-token"
    with suppress(FileNotFoundError):
        return file.read_text()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(secrets.token_hex(32))
    return file.read_text()


def address_of(chosen: ClusterSettings) -> str:
    """The IP address at which other machines reach this one."""
    if chosen.address:
        return chosen.address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: only a route is looked up
        return str(probe.getsockname()[0])


def _below() -> set[psutil.Process]:
    """All processes that this one and those below it have started."""
    return set(psutil.Process().children(recursive=True))


def _environment(settings: Settings, ports: range) -> dict[str, str]:
    """What Ray and Serve read from the environment here: ports and the token are this Dray's own."""
    metrics, stats, fallback, *replicas = ports
    http, grpc = replicas[: len(replicas) // 2], replicas[len(replicas) // 2 :]
    return serve_environment(settings, haproxy.command()) | {
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(http[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(http[-1]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(grpc[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(grpc[-1]),
        "RAY_AUTH_TOKEN_PATH": str(settings.state_dir / _TOKEN),
    }


def clear(folder: Path) -> None:
    """Ends what a killed launcher left running on this state folder, and deletes its files.

    Ray's own processes notice by themselves, in their time; HAProxy is nobody's to end once its manager is gone.
    """
    mine = str(folder / _TOKEN)
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("RAY_AUTH_TOKEN_PATH") == mine:
                left.append(process)
    _end(left, patience_s=0)
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def _end(processes: list[psutil.Process], patience_s: float = _STOP_S / 4) -> None:
    """Waits for the processes; those still there after a while are killed."""
    _, alive = psutil.wait_procs(processes, timeout=patience_s)
    for process in alive:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(alive, timeout=_STOP_S / 4)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=_STOP_S / 2)
