"""A Ray node on this machine: its environment, its processes, and their end in every case."""

import atexit
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

from cluster.child import dies_with_parent
from cluster.launch import haproxy
from cluster.launch.environment import HAPROXY_FOLDER, METRICS_FOLDER, OBJECT_STORE_BYTES, serve_environment
from cluster.launch.import_guard import leave_out_pandas
from cluster.launch.preflight import LaunchError
from cluster.launch.ray_parts import hide_redis_password, leave_out_unused_processes, shrink_agent
from cluster.launch.watch import killing_hung_processes
from cluster.private_files import check_private_folder, private_folder, read_private, write_private
from cluster.redis_server import Listen
from cluster.settings import ClusterSettings, Settings

_STOP_S = 20.0
_DRAIN_S = 40.0
"""Ray gives the work on a node that is asked to leave 30 s to end."""
_TOKEN_FILE = "ray-token"
_NODE_FOLDERS = ("ray", HAPROXY_FOLDER, METRICS_FOLDER)
_ALL_FOLDERS = (*_NODE_FOLDERS, "redis", "teams", "gcs")
_ESSENTIAL = ("gcs_server", "raylet")
"""Ray's processes that nothing restarts."""


class RayEndedError(LaunchError):
    """Ray itself has ended on this machine. Only a new process can start it again."""


def interrupt_on_sigterm() -> None:
    """Makes SIGTERM end this process as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


@contextmanager
def first_node(
    settings: Settings, cores: int, ports: range, store: Listen | None = None
) -> Iterator[Callable[[], None]]:
    """Starts Ray on this machine and ends it with all its processes; others may join where the settings say so.

    store: the Redis in which Ray keeps its state. None: in its own memory.
    Yields a check that raises RayEndedError once Ray itself has ended.
    """
    chosen = settings.cluster
    with prepared(settings, ports, token_of(settings), alone=not chosen.head):
        if chosen.head:
            os.environ["RAY_GCS_SERVER_PORT"] = str(chosen.port)
        if store is not None:
            os.environ["RAY_REDIS_ADDRESS"] = f"{store.address}:{store.port}"
        leave_out_pandas()
        leave_out_unused_processes()
        shrink_agent()
        hide_redis_password()
        import ray

        before = _descendants()
        alive = True
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
            interrupt_on_sigterm()  # ray.init installs a handler of its own
            essential = [(process.name(), process) for process in psutil.Process().children()]
            essential = [(name, process) for name, process in essential if name in _ESSENTIAL]

            def check() -> None:
                for name, process in essential:
                    if _has_ended(process):
                        raise RayEndedError(f"Ray has ended: its {name} (process {process.pid}) died")

            yield check
        except RayEndedError:
            alive = False
            raise
        finally:
            # Listed before the shutdown: a process whose parent has ended is no longer a descendant of this one. What a
            # raylet that died has left has no parent already.
            started = (_descendants() | _started_with_token(settings.state_dir)) - before
            if alive:
                ray.shutdown()
            else:
                # It would write to the dead raylet and end this process on the spot, also at exit (ray 2.60).
                atexit.unregister(ray.shutdown)
            _end(list(started), timeout_s=_STOP_S / 4 if alive else 0)


@contextmanager
def further_node(settings: Settings, cores: int, head: str) -> Iterator[Callable[[], bool]]:
    """Runs a node of another machine's Ray, within `prepared`. head: that machine's HOST:PORT.

    Yields a function to call at regular intervals: it starts the node again if Ray has ended it, as Ray does with a
    node that it had lost contact with, and returns whether it had to.
    """
    command = [
        *(sys.executable, "-m", "cluster.launch.ray_start", "start"),
        f"--address={head}",
        f"--node-ip-address={address_of(settings.cluster)}",
        f"--num-cpus={cores}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={settings.state_dir / 'ray'}",
        "--disable-usage-stats",
        "--include-log-monitor=false",
        "--block",
    ]

    def start() -> subprocess.Popen[bytes]:
        null, dies = subprocess.DEVNULL, dies_with_parent(signal.SIGTERM)
        return subprocess.Popen(command, stdin=null, stdout=null, stderr=null, preexec_fn=dies)

    process = start()

    def revive() -> bool:
        nonlocal process
        if process.poll() is None:
            return False
        _end(list(_descendants()), timeout_s=0)
        process = start()
        return True

    try:
        yield revive
    finally:
        started = _descendants()
        process.terminate()
        _end(list(started), timeout_s=_DRAIN_S)


@contextmanager
def prepared(settings: Settings, ports: range, token: str, *, alone: bool) -> Iterator[None]:
    """Sets the environment and the folders of a node on this machine; removes the folders at the end. In between,
    replicas and servers that hang are killed.

    alone: no other machine belongs to this Ray.
    """
    folder = settings.state_dir
    os.environ.update(_environment(settings, ports))
    if alone:
        os.environ.update(_on_loopback(settings))
    file = folder / _TOKEN_FILE
    write_private(file, token)
    for name in (METRICS_FOLDER, HAPROXY_FOLDER):
        private_folder(folder / name)
    try:
        with killing_hung_processes(folder / METRICS_FOLDER):
            yield
    finally:
        for name in _NODE_FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
        file.unlink(missing_ok=True)


def token_of(settings: Settings) -> str:
    """The secret that another machine needs to join this one. A head's is kept in data_dir, to survive restarts."""
    if not settings.cluster.head:
        return secrets.token_hex(32)
    file = settings.data_dir / "cluster-token"
    private_folder(file.parent)
    with suppress(FileNotFoundError):
        return read_private(file)
    write_private(file, secrets.token_hex(32))
    return read_private(file)


def address_of(chosen: ClusterSettings) -> str:
    """The IP address at which other machines reach this one."""
    if chosen.address:
        return chosen.address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; it only looks up a route
        return str(probe.getsockname()[0])


def _descendants() -> set[psutil.Process]:
    """All processes that this one has started, directly or through others."""
    return set(psutil.Process().children(recursive=True))


def _environment(settings: Settings, ports: range) -> dict[str, str]:
    """What Ray and Serve read from the environment here: with this Dray's own ports and token."""
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
        "RAY_AUTH_TOKEN_PATH": str(settings.state_dir / _TOKEN_FILE),
    }


def _on_loopback(settings: Settings) -> dict[str, str]:
    """Makes Ray and Serve listen on 127.0.0.1 only, and HAProxy on the settings' address."""
    # In spite of its name, it makes Ray take 127.0.0.1 for the node's address on Linux too (ray 2.60).
    return {haproxy.HOST: settings.host, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def clear(folder: Path) -> None:
    """Ends what a killed launcher left running on this state folder, and deletes its files. Raises NotPrivate.

    Ray's processes end by themselves after a while; HAProxy runs on when its manager has gone.
    """
    check_private_folder(folder)
    _end(list(_started_with_token(folder)), timeout_s=0)
    for name in _ALL_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def _started_with_token(folder: Path) -> set[psutil.Process]:
    """All processes that were started with the token of this state folder in their environment."""
    token = str(folder / _TOKEN_FILE)
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("RAY_AUTH_TOKEN_PATH") == token:
                found.add(process)
    return found


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _end(processes: list[psutil.Process], timeout_s: float) -> None:
    """Waits for the processes to end; terminates those that remain after the timeout, then kills them."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(alive, timeout=_STOP_S / 4)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_STOP_S / 2)
