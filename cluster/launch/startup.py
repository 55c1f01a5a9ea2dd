"""Starts Dray on one machine and stops it: its Redis servers, Ray, the Serve applications, in that order."""

import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path

from redis.exceptions import RedisError

from cluster.cores import sweep, usable_cores
from cluster.launch import serving
from cluster.launch.preflight import LaunchError, check, port_block, with_routers
from cluster.launch.ray_node import address_of, clear, first_node, interrupt_on_sigterm, token_of
from cluster.launch.state import AlreadyRunning, Record, hold, remove_folder_if_empty, write_record
from cluster.launch.supervisor import Supervisor
from cluster.launch.unmeasured import announcement
from cluster.records.privacy import check_keys
from cluster.records.sealing import SealingError
from cluster.records.teams import read_registry
from cluster.redis_client import RedisUrlError, connect
from cluster.redis_server import Listen, OwnRedis, RedisStartError
from cluster.serve_config import Routers
from cluster.settings import Settings
from cluster.units import plural

log = logging.getLogger("dray.launch")

_TEAMS_MB = 64
_GCS_MB = 256


@contextmanager
def running(settings: Settings, on_stage: Callable[[str], None]) -> Iterator[Supervisor]:
    """Runs Dray for as long as the block runs; afterwards no process, port, lock or file of it is left.

    on_stage: called with what is being started. The caller must call the supervisor's `reconcile` at regular intervals.
    Raises LaunchError, AlreadyRunning.
    """
    folder = settings.state_dir
    settings = with_routers(settings, usable_cores().count)
    interrupt_on_sigterm()
    with hold(folder), ExitStack() as stack:

        def stage(name: str) -> None:
            try:
                write_record(folder, Record(os.getpid(), name, settings=settings.model_dump(mode="json")))
            except OSError as error:
                raise LaunchError(f"cannot write to state_dir {folder}: {error}") from None
            on_stage(name)

        clear(folder)
        stack.callback(sweep, settings.core_lock_dir)
        stage("checking the machine and the model")
        found = check(settings)
        stage("starting Redis")
        servers: dict[str, OwnRedis] = {}
        redis_url, teams_url = settings.cache.url, settings.teams.url
        if settings.cache.enabled and not redis_url:
            cache = OwnRedis(folder / "redis", settings.cache.memory_mb, listen=_listen(settings, 0, "answers"))
            servers["the answer cache"], redis_url = cache, cache.url
        if not teams_url or settings.cluster.head:
            stack.enter_context(_held_data_dir(settings.data_dir))
        if not teams_url:
            teams = OwnRedis(folder / "teams", _TEAMS_MB, settings.data_dir / "teams", _listen(settings, 1, "teams"))
            servers["teams"], teams_url = teams, teams.url
        gcs = _redis_of_ray(settings) if settings.cluster.head else None
        if gcs is not None:
            servers["Ray"] = gcs
        for server in servers.values():
            stack.enter_context(_started(server))
        keys = _has_keys(teams_url)
        _check_privacy(teams_url)
        routers = Routers(settings, redis_url, teams_url, found.engines)
        os.environ.update(routers.urls)
        stage("starting Ray")
        with _ray_errors_as_launch_errors():
            ports = stack.enter_context(port_block())
            check_ray = stack.enter_context(first_node(settings, found.usable, ports, gcs.listen if gcs else None))
            names = ", ".join(engine.model.name for engine in found.engines)
            stage(f"{announcement(found.engines)}loading {names} on {plural(found.leased, 'core')}")
            serving.start(routers)
        yield Supervisor(routers, found.usable, servers, check_ray, keys=keys)


def _listen(settings: Settings, offset: int, store: str) -> Listen | None:
    """Where routers on other machines reach a Redis of Dray's own; None where there are no others."""
    chosen = settings.cluster
    if not chosen.head:
        return None
    return Listen(address_of(chosen), chosen.redis_port + offset, _password(settings, store))


def _redis_of_ray(settings: Settings) -> OwnRedis:
    """Where a head's Ray keeps its state, so that a restarted head finds its nodes and replicas again.

    The state is only useful while the machines that have joined are there, so `dray down` deletes it.
    """
    listen = Listen("127.0.0.1", settings.cluster.redis_port + 2, secrets.token_hex(16))
    return OwnRedis(settings.state_dir / "gcs", _GCS_MB, settings.data_dir / "ray", listen, discard_on_stop=True)


def _password(settings: Settings, store: str) -> str:
    """Of one store; the same at each start of the head, since routers on other machines still use it."""
    return blake2b(token_of(settings).encode(), digest_size=16, person=f"dray.{store}".encode()).hexdigest()


@contextmanager
def _started(server: OwnRedis) -> Iterator[None]:
    try:
        server.start()
        yield
    except RedisStartError as error:
        raise LaunchError(str(error)) from None
    finally:
        server.stop()


def _has_keys(url: str) -> bool:
    try:
        with connect(url) as client:
            return read_registry(client).locked
    except (RedisError, OSError, RedisUrlError) as error:
        raise LaunchError(f"the Redis of teams.url does not answer: {error}") from None


def _check_privacy(url: str) -> None:
    """Refuses keys of encryption with which what is kept cannot be read. Raises LaunchError."""
    try:
        with connect(url) as client:
            fault = check_keys(client, renew=True)
    except SealingError as error:
        raise LaunchError(str(error)) from None
    if fault:
        raise LaunchError(fault)


@contextmanager
def _held_data_dir(folder: Path) -> Iterator[None]:
    """Holds the data folder for this Dray alone; removes it at the end if it is empty."""
    try:
        with hold(folder):
            yield
    except AlreadyRunning:
        raise LaunchError(
            f"another Dray keeps its teams in {folder}; give this one its own data_dir (DRAY_DATA_DIR)"
        ) from None
    finally:
        remove_folder_if_empty(folder)


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
