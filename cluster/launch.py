"""Bringing Dray up on one machine and taking it down: its Redis servers, Ray, the Serve applications, in that order."""

import logging
import os
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

import psutil
from redis.exceptions import RedisError

from cluster import haproxy, serving
from cluster.configuration import fixed_that_differ
from cluster.cores import sweep
from cluster.preflight import Checked, LaunchError, check, check_change, port_block
from cluster.redis import OwnRedis, RedisStartError
from cluster.redis_client import RedisUrlError, connect
from cluster.rollout import RolloutError, roll
from cluster.serve_config import Routers
from cluster.settings import Settings
from cluster.state import AlreadyRunning, Record, Wish, hold, take_wish, write_record
from cluster.teams import read_registry

log = logging.getLogger("dray.launch")

_OBJECT_STORE_BYTES = 80 * 2**20
_STOP_S = 20.0
_TEAMS_MB = 64
_RAYS_FOLDERS = ("ray", "h", "metrics")
_FOLDERS = (*_RAYS_FOLDERS, "redis", "teams")


class Dray:
    """A Dray that is up: what its launcher does now and then while it runs."""

    def __init__(self, routers: Routers, usable: int, own: list[OwnRedis], *, keys: bool) -> None:
        """usable: cores that may be leased in all. own: Redis servers to keep alive. keys: whether there is one."""
        self._routers = routers
        self._keys = keys
        self._usable = usable
        self._servers = own
        self._folder = routers.settings.state_dir
        self._rollout: Iterator[str] | None = None
        self._wish: Wish | None = None
        self._wanted = routers
        self._record()

    def tend(self) -> None:
        """Revives Redis if it has died, and takes a deployment that was wished for one step further."""
        for server in self._servers:
            if server.revive():
                log.warning("a Redis server had ended; started it again")
        try:
            if self._rollout is None:
                self._take_wish()
            else:
                self._record(rollout=next(self._rollout))
        except StopIteration:
            self._routers = self._wanted
            self._answer("")
        except (RolloutError, LaunchError) as error:
            self._answer(str(error))

    def _take_wish(self) -> None:
        self._wish = take_wish(self._folder)
        if self._wish is None:
            return
        settings = Settings(**self._wish.settings)
        if changed := fixed_that_differ(settings, self._routers.settings):
            raise LaunchError(f"{', '.join(changed)} cannot change while Dray runs; dray down, then dray up")
        found, free, beside = check_change(settings, self._routers.engines)
        self._wanted = replace(self._routers, settings=settings, engines=found.engines)
        ours = sum(engine.leased for engine in self._routers.engines)
        self._rollout = roll(self._routers, self._wanted, min(free, self._usable - ours), beside=beside)

    def _answer(self, refused: str) -> None:
        self._rollout = None
        assert self._wish is not None
        self._record(answered=self._wish.id, refused=refused)

    def _record(self, **news: str) -> None:
        settings = self._routers.settings
        names = [engine.model.name for engine in self._routers.engines]
        write_record(
            self._folder,
            Record(
                os.getpid(),
                "ready",
                url=base_url(settings),
                models=names,
                redis=self._routers.redis_url,
                teams=self._routers.teams_url,
                keys=self._keys,
                settings=settings.model_dump(mode="json"),
                **news,
            ),
        )


@contextmanager
def running(settings: Settings, on_stage: Callable[[str], None]) -> Iterator[Dray]:
    """Dray, up and ready, for as long as the block runs; afterwards no process, port, lock or file of it is left.

    on_stage: told what is being started. What it gives must be tended now and then.
    Raises LaunchError, AlreadyRunning.
    """
    folder = settings.state_dir
    interrupt_on_sigterm()
    with hold(folder), ExitStack() as stack:

        def stage(name: str) -> None:
            write_record(folder, Record(os.getpid(), name, settings=settings.model_dump(mode="json")))
            on_stage(name)

        clear(folder)
        stack.callback(sweep, settings.core_lock_dir)
        stage("checking the machine and the model")
        found = check(settings)
        stage("starting Redis")
        own = []
        redis_url, teams_url = settings.cache.url, settings.teams.url
        if settings.cache.enabled and not redis_url:
            own.append(OwnRedis(folder / "redis", settings.cache.memory_mb))
            redis_url = own[-1].url
        if not teams_url:
            stack.enter_context(_held_data(settings.data_dir))
            own.append(OwnRedis(folder / "teams", _TEAMS_MB, settings.data_dir / "teams"))
            teams_url = own[-1].url
        for server in own:
            stack.enter_context(_started(server))
        keys = _any_keys(teams_url)
        stage("starting Ray")
        with _ray_errors_as_launch_errors():
            stack.enter_context(_ray(settings, found, stack.enter_context(port_block())))
            names = ", ".join(engine.model.name for engine in found.engines)
            stage(f"loading {names} on {found.leased} cores")
            routers = Routers(settings, redis_url, teams_url, found.engines)
            serving.start(routers)
        yield Dray(routers, found.usable, own, keys=keys)


@contextmanager
def _started(server: OwnRedis) -> Iterator[None]:
    try:
        server.start()
    except RedisStartError as error:
        server.stop()
        raise LaunchError(str(error)) from None
    try:
        yield
    finally:
        server.stop()


def _any_keys(url: str) -> bool:
    try:
        with connect(url) as client:
            return bool(read_registry(client).keys)
    except (RedisError, OSError, RedisUrlError) as error:
        raise LaunchError(f"the Redis of teams.url does not answer: {error}") from None


@contextmanager
def _held_data(folder: Path) -> Iterator[None]:
    """The data folder, for this Dray alone; taken away at the end where nothing lasting is in it."""
    try:
        with hold(folder):
            yield
    except AlreadyRunning:
        raise LaunchError(
            f"another Dray keeps its teams in {folder}; give this one a data_dir of its own (DRAY_DATA_DIR)"
        ) from None
    finally:
        remove_folder_if_empty(folder)


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
def _ray(settings: Settings, found: Checked, ports: range) -> Iterator[None]:
    folder = settings.state_dir
    os.environ.update(_environment(settings, ports))
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
        for name in _RAYS_FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
        token.unlink(missing_ok=True)


def _environment(settings: Settings, ports: range) -> dict[str, str]:
    """What Ray and Serve read from the environment when they are imported."""
    folder = settings.state_dir
    metrics, stats, fallback, *replicas = ports
    http, grpc = replicas[: len(replicas) // 2], replicas[len(replicas) // 2 :]
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
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(http[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(http[-1]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(grpc[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(grpc[-1]),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # How long a router that goes stays reachable, until HAProxy has heard of it (Serve's default is 30 s). HAProxy
        # tries again elsewhere what is refused after that.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
        "RAY_SERVE_HAPROXY_MAXCONN": str(settings.router.max_connections),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "ray-token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Every Dray process of this node writes its metrics here, so that any of them can show all.
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
        "TRANSFORMERS_VERBOSITY": "error",
    }


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
