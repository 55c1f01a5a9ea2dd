"""Bringing Dray up on one machine and taking it down: Redis, Ray, the Serve application, in that order."""

import logging
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from cluster import haproxy
from cluster.cores import sweep
from cluster.preflight import Checked, LaunchError, check, free_port
from cluster.redis import OwnRedis, RedisStartError
from cluster.serve_config import Engine, Routers, serve_config
from cluster.settings import Settings
from cluster.state import Record, hold, write_record

log = logging.getLogger("dray.launch")

_OBJECT_STORE_BYTES = 80 * 2**20
_STOP_S = 20.0
_LOOK_S = 0.1
_FOLDERS = ("ray", "h", "metrics")


@contextmanager
def running(settings: Settings, on_stage: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Dray, up and ready, for as long as the block runs; afterwards no process, port, lock or file of it is left.

    on_stage: told what is being started. Gives a function to call now and then: it revives what has died.
    Raises LaunchError, AlreadyRunning.
    """
    folder = settings.state_dir
    interrupt_on_sigterm()
    with hold(folder), ExitStack() as stack:

        def stage(name: str, **known: Any) -> None:
            write_record(folder, Record(os.getpid(), name, settings=settings.model_dump(mode="json"), **known))
            on_stage(name)

        clear(folder)
        stack.callback(sweep, settings.core_lock_dir)
        stage("checking the machine and the model")
        found = check(settings)
        own = None
        redis_url = settings.cache.url
        if settings.cache.enabled and not redis_url:
            stage("starting Redis")
            own = OwnRedis(folder / "redis", settings.cache.memory_mb)
            stack.callback(shutil.rmtree, folder / "redis", ignore_errors=True)
            stack.callback(own.stop)
            try:
                own.start()
            except RedisStartError as error:
                raise LaunchError(str(error)) from None
            redis_url = own.url
        stage("starting Ray")
        with _ray_errors_as_launch_errors():
            stack.enter_context(_ray(settings, found))
            names = [engine.model.name for engine in found.engines]
            stage(f"loading {', '.join(names)} on {found.leased} cores")
            _serve(settings, found, redis_url)
        stage("ready", url=base_url(settings), models=names, redis=redis_url)

        def tend() -> None:
            if own is not None and own.revive():
                log.warning("the Redis server had ended; started it again")

        yield tend


def base_url(settings: Settings) -> str:
    """Where clients connect."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"http://{host}:{settings.port}/v1"


def interrupt_on_sigterm() -> None:
    """Makes SIGTERM end this process as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


@contextmanager
def _ray_errors_as_launch_errors() -> Iterator[None]:
    try:
        yield
    except LaunchError:
        raise
    except Exception as error:  # Ray's errors and Serve's have no common type; a user gets one line
        log.debug("start failed", exc_info=error)
        lines = str(error).strip().splitlines()
        raise LaunchError(f"Ray does not start: {lines[-1] if lines else type(error).__name__}") from error


@contextmanager
def _ray(settings: Settings, found: Checked) -> Iterator[None]:
    folder = settings.state_dir
    os.environ.update(_environment(settings))
    import ray

    token = folder / "ray-token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    (folder / "metrics").mkdir(exist_ok=True)
    before = set(psutil.Process().children(recursive=True))
    try:
        ray.init(
            address="local",
            num_cpus=found.usable,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace="dray",
            _temp_dir=str(folder / "ray"),
        )
        interrupt_on_sigterm()  # ray.init puts a handler of its own in its place
        yield
    finally:
        # Named before the shutdown: a process whose parent has gone is no longer found below this one.
        started = set(psutil.Process().children(recursive=True)) - before
        ray.shutdown()
        _end(list(started))
        for name in _FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
        token.unlink(missing_ok=True)


def _environment(settings: Settings) -> dict[str, str]:
    """What Ray and Serve read from the environment when they are imported."""
    folder = settings.state_dir
    proxy = folder / "h"  # short: a node id of 56 characters and a socket's name follow, and paths end at 107
    return {
        # Without HAProxy, throughput mode puts the only proxy on the head node; both, or neither.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy.command()),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "m.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_MAXCONN": str(settings.router.max_connections),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "ray-token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Every Dray process of this node writes its metrics here, so that any of them can show all.
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
        "TRANSFORMERS_VERBOSITY": "error",
    }


def _serve(settings: Settings, found: Checked, redis_url: str) -> None:
    """Deploys the applications and waits until they serve. Raises LaunchError with what a replica said."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        http_options={"host": settings.host, "port": settings.port},
        logging_config={"enable_access_log": False},
    )
    apply(Routers(settings, redis_url, found.engines))
    patience = max(engine.model.settings.start_timeout_s for engine in found.engines)
    deadline = time.monotonic() + patience
    while True:
        applications = serve.status().applications
        if all(one.status == "RUNNING" for one in applications.values()):
            return
        said = next(filter(None, map(_failure, applications.values())), "")
        if said or time.monotonic() > deadline:
            raise LaunchError(said or f"not ready within {patience:.0f} s")
        time.sleep(_LOOK_S)


def apply(routers: Routers, engines: Iterable[Engine] | None = None) -> None:
    """Makes Serve run just these; what runs already as it should is left alone."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    # What `serve run` does with a config file; there is no public call that takes one.
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(serve_config(routers, engines)))


def _failure(status: Any) -> str:
    """The line in which a replica said why it cannot start; empty while none did."""
    for deployment in status.deployments.values():
        for line in deployment.message.splitlines():
            if "EngineStartError" in line or "NotEnoughCores" in line:
                return f"the engine cannot start: {line.rsplit('Error: ', 1)[-1].strip()}"
    if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
        lines = str(status.message).strip().splitlines()
        return f"the application cannot start: {lines[-1] if lines else status.status}"
    return ""


def clear(folder: Path) -> None:
    """Ends what a killed launcher left running on this state folder, and deletes its files.

    Ray's own processes notice by themselves, in their time; HAProxy is nobody's to end once its manager is gone.
    """
    mine = str(folder / "ray-token")
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


def remove_folder_if_empty(folder: Path) -> None:
    """Takes away a state folder in which nothing is left."""
    try:
        folder.rmdir()
    except OSError:
        return
