"""What must hold before anything is started, each refusal one line that says what to do."""

import errno
import random
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.cores import NotEnoughCores, UsableCores, count_free, held_cores, usable_cores
from cluster.models.folder import ModelFolderError, ServedModel, memory_needed, open_models
from cluster.redis_client import RedisUrlError, check_url
from cluster.serve_config import Engine
from cluster.settings import Settings

_MOST_CORES = 8
_RUNTIME_BYTES = 900 * 2**20
_LONGEST_STATE_DIR = 40
_BLOCKS = range(20_000, 30_000, 100)
_SINGLE_PORTS = range(30_000, 32_000)
_CGROUP_MEMORY = Path("/sys/fs/cgroup")


class LaunchError(Exception):
    """Dray cannot start here, and why."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What the checks found: the engines to run, and the cores that may be leased in all."""

    engines: tuple[Engine, ...]
    usable: int

    @property
    def leased(self) -> int:
        """Cores that all replicas lease together."""
        return sum(engine.leased for engine in self.engines)


def check(settings: Settings) -> Checked:
    """Holds the settings against the machine. Raises LaunchError with the first thing that does not fit."""
    if len(str(settings.state_dir)) > _LONGEST_STATE_DIR:
        raise LaunchError(
            f"state_dir {settings.state_dir} is longer than {_LONGEST_STATE_DIR} characters: "
            "the paths of the sockets below it would not fit"
        )
    _check_port(settings.host, settings.port)
    for url in filter(None, (settings.cache.url, settings.teams.url)):
        try:
            check_url(url)
        except RedisUrlError as error:
            raise LaunchError(str(error)) from None
    usable = usable_cores()
    found = _check_models(settings, usable)
    _check_cores(settings, found, usable, count_free(settings.core_lock_dir, usable=usable))
    base = settings.cache.memory_mb * 2**20 + _RUNTIME_BYTES
    _check_memory(found.engines, base, available_memory())
    return found


def check_change(settings: Settings, running: Sequence[Engine]) -> tuple[Checked, int, bool]:
    """Holds changed settings against the machine on which these engines run.

    Gives what was found, how many cores nobody leases now, and whether there is memory for all new engines beside
    those that run. Raises LaunchError where the new ones would not fit even alone.
    """
    usable = usable_cores()
    found = _check_models(settings, usable)
    free = count_free(settings.core_lock_dir, usable=usable)
    _check_cores(settings, found, usable, free + sum(engine.leased for engine in running))
    there = available_memory()
    _check_memory(found.engines, 0, there + sum(memory_needed(engine.model) for engine in running))
    names = {engine.application for engine in running}
    added = sum(memory_needed(engine.model) for engine in found.engines if engine.application not in names)
    return found, free, added <= there


def _check_models(settings: Settings, usable: UsableCores) -> Checked:
    try:
        models = open_models(settings)
    except ModelFolderError as error:
        raise LaunchError(str(error)) from None
    for model in models:
        _check_readable(model)
    similar = settings.cache.similar
    if similar and not any(similar in model.names and model.settings.task == "embed" for model in models):
        raise LaunchError(f"cache.similar names {similar!r}, which is no embedding model that is served (task: embed)")
    cores = _cores_each(models, usable.count)
    engines = (Engine(settings, model, cores[model.name], model.settings.replicas) for model in models)
    return Checked(tuple(engines), usable.count)


def _check_port(host: str, port: int) -> None:
    # Without SO_REUSEPORT: HAProxy sets it, so a second one would share the port in silence.
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise LaunchError(f"port {port} on {host} is in use; choose another with --port") from None
            raise LaunchError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def free_port() -> int:
    """A TCP port on which nothing listens, on any address.

    Drawn from below the range from which the kernel gives ports to clients: there, another connection could take it
    before it is used.
    """
    while True:
        port = random.choice(_SINGLE_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port


@contextmanager
def port_block() -> Iterator[range]:
    """Ports that no other Dray on this machine has, for as long as the block runs.

    HAProxy and Serve's replicas bind theirs with SO_REUSEPORT: two Drays that chose one would share its connections.
    """
    starts = list(_BLOCKS)
    random.shuffle(starts)
    for start in starts:
        with socket.socket() as mark:
            try:
                mark.bind(("127.0.0.1", start))
                for port in range(start + 1, start + _BLOCKS.step):
                    with socket.socket() as probe:
                        probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            yield range(start + 1, start + _BLOCKS.step)
            return
    raise LaunchError(f"no {_BLOCKS.step} ports in a row are free between {_BLOCKS.start} and {_BLOCKS.stop}")


def _check_readable(model: ServedModel) -> None:
    import openvino

    try:
        openvino.Core().read_model(str(model.folder / "openvino_model.xml"))
    except RuntimeError as error:
        raise LaunchError(f"model folder {model.folder} is broken: {str(error).strip().splitlines()[-1]}") from None


def _cores_each(models: list[ServedModel], usable: int) -> dict[str, int]:
    """Whole cores of each model's replicas: what was wished, and equal shares of the rest."""
    wished = [(model, model.settings.cores_per_replica, model.settings.replicas) for model in models]
    left = usable - sum(cores * replicas for _, cores, replicas in wished)
    sharing = sum(replicas for _, cores, replicas in wished if not cores)
    share = max(1, min(left // sharing, _MOST_CORES)) if sharing else 0
    return {model.name: cores or share for model, cores, _ in wished}


def _check_cores(settings: Settings, found: Checked, usable: UsableCores, free: int) -> None:
    if found.leased > free:
        short = str(NotEnoughCores(found.leased, free, usable, tuple(held_cores(settings.core_lock_dir))))
        sums = (f"{one.model.name}: {one.replicas} x {one.cores}" for one in found.engines)
        raise LaunchError(f"{short} ({', '.join(sums)})" if len(found.engines) > 1 else short)


def _check_memory(engines: Sequence[Engine], base: int, there: int) -> None:
    needs = {engine.model.name: memory_needed(engine.model) for engine in engines}
    if base + sum(needs.values()) > there:
        sums = " + ".join(f"{name} {_gib(size)}" for name, size in needs.items())
        raise LaunchError(
            f"{sums} + Redis and Ray {_gib(base)} need {_gib(base + sum(needs.values()))} of memory and "
            f"{_gib(there)} is available; use fewer replicas or a smaller model.kv_cache_mb"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def available_memory() -> int:
    """Bytes that may still be used: the machine's, or less where a cgroup says so."""
    there = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP_MEMORY / "memory.max").read_text().strip()
        used = int((_CGROUP_MEMORY / "memory.current").read_text())
    except (OSError, ValueError):
        return there
    return there if limit == "max" else min(there, int(limit) - used)
