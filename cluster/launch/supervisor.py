"""Bringing Dray up on one machine and taking it down: its Redis servers, Ray, the Serve applications, in that order."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from redis.exceptions import RedisError

from cluster.configuration import changed_fixed_settings
from cluster.cores import sweep
from cluster.launch import membership, serving
from cluster.launch.preflight import LaunchError, check, check_change, port_block
from cluster.launch.ray_node import address_of, clear, first_node, interrupt_on_sigterm, token_of
from cluster.launch.rollout import RolloutError, roll
from cluster.launch.state import AlreadyRunning, DeployRequest, Record, hold, take_deploy_request, write_record
from cluster.records.teams import read_registry
from cluster.redis_client import RedisUrlError, connect
from cluster.redis_server import Listen, OwnRedis, RedisStartError
from cluster.serve_config import Routers
from cluster.settings import Settings

log = logging.getLogger("dray.launch")

_TEAMS_MB = 64
_GCS_MB = 256


class Supervisor:
    """A Dray that is up: what its launcher does now and then while it runs."""

    def __init__(self, routers: Routers, usable: int, own: list[OwnRedis], *, keys: bool) -> None:
        """usable: cores that may be leased in all. own: Redis servers to keep alive. keys: whether there is one."""
        self._routers = routers
        self._keys = keys
        self._usable = usable
        self._servers = own
        self._folder = routers.settings.state_dir
        self._rollout: Iterator[str] | None = None
        self._wish: DeployRequest | None = None
        self._wanted = routers
        self._publish()
        self._record()

    def reconcile(self) -> None:
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
            self._publish()
            self._answer("")
        except (RolloutError, LaunchError) as error:
            self._answer(str(error))

    def _take_wish(self) -> None:
        self._wish = take_deploy_request(self._folder)
        if self._wish is None:
            return
        settings = Settings(**self._wish.settings)
        if changed := changed_fixed_settings(settings, self._routers.settings):
            raise LaunchError(f"{', '.join(changed)} cannot change while Dray runs; dray down, then dray up")
        found, free, beside = check_change(settings, self._routers.engines)
        self._wanted = replace(self._routers, settings=settings, engines=found.engines)
        ours = sum(engine.leased for engine in self._routers.engines)
        self._rollout = roll(self._routers, self._wanted, min(free, self._usable - ours), beside=beside)

    def _answer(self, refused: str) -> None:
        self._rollout = None
        assert self._wish is not None
        self._record(answered=self._wish.id, refused=refused)

    def _publish(self) -> None:
        if self._routers.settings.cluster.head:
            membership.publish([engine.model for engine in self._routers.engines])

    def _record(self, **news: str) -> None:
        settings = self._routers.settings
        names = [engine.model.name for engine in self._routers.engines]
        write_record(
            self._folder,
            Record(
                os.getpid(),
                "ready",
                url=settings.url,
                models=names,
                redis=self._routers.redis_url,
                teams=self._routers.teams_url,
                keys=self._keys,
                settings=settings.model_dump(mode="json"),
                **news,
            ),
        )


@contextmanager
def running(settings: Settings, on_stage: Callable[[str], None]) -> Iterator[Supervisor]:
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
            own.append(OwnRedis(folder / "redis", settings.cache.memory_mb, listen=_listen(settings, 0)))
            redis_url = own[-1].url
        if not teams_url or settings.cluster.head:
            stack.enter_context(_held_data(settings.data_dir))
        if not teams_url:
            own.append(OwnRedis(folder / "teams", _TEAMS_MB, settings.data_dir / "teams", _listen(settings, 1)))
            teams_url = own[-1].url
        gcs = _redis_of_ray(settings) if settings.cluster.head else None
        if gcs is not None:
            own.append(gcs)
        for server in own:
            stack.enter_context(_started(server))
        keys = _any_keys(teams_url)
        stage("starting Ray")
        with _ray_errors_as_launch_errors():
            ports = stack.enter_context(port_block())
            stack.enter_context(first_node(settings, found.usable, ports, gcs.listen if gcs else None))
            names = ", ".join(engine.model.name for engine in found.engines)
            stage(f"loading {names} on {found.leased} cores")
            routers = Routers(settings, redis_url, teams_url, found.engines)
            serving.start(routers)
        yield Supervisor(routers, found.usable, own, keys=keys)


def _listen(settings: Settings, place: int) -> Listen | None:
    """Where routers on other machines reach a Redis of Dray's own; None where there are no others."""
    chosen = settings.cluster
    if not chosen.head:
        return None
    return Listen(address_of(chosen), chosen.redis_port + place, _password(settings))


def _redis_of_ray(settings: Settings) -> OwnRedis:
    """Where a head's Ray keeps what it knows, so that a head that comes back finds its nodes and its replicas.

    What is in it is of use for as long as the machines that have joined are there: after `dray down` it is gone.
    """
    listen = Listen("127.0.0.1", settings.cluster.redis_port + 2, _password(settings))
    return OwnRedis(settings.state_dir / "gcs", _GCS_MB, settings.data_dir / "ray", listen, forgets=True)


def _password(settings: Settings) -> str:
    """The same each time the head comes up: routers on other machines know it still."""
    return blake2b(token_of(settings).encode(), digest_size=16, person=b"dray.redis").hexdigest()


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


def remove_folder_if_empty(folder: Path) -> None:
    """Takes away a state folder in which nothing is left."""
    try:
        folder.rmdir()
    except OSError:
        return
